//! Finding memory that a step would write and that something else in the step uses too.

/// A range of addresses, from its first byte to one past its last.
pub type Range = (usize, usize);

/// The ranges that a step writes, each belonging to one item of the step.
#[derive(Debug, Default)]
pub struct Written {
    /// Ranges and their items as given. If a step gives the same again, what is known about them still holds.
    given: Vec<(Range, usize)>,
    count: usize,
    changed: bool,
    sorted: Vec<(Range, usize)>,
    conflicts: Vec<usize>,
}

impl Written {
    /// Begins a new step.
    pub fn begin(&mut self) {
        self.count = 0;
        self.changed = false;
    }

    /// Adds a range that `item` writes.
    pub fn add(&mut self, item: usize, range: Range) {
        match self.given.get_mut(self.count) {
            Some(given) if *given == (range, item) => {}
            Some(given) => {
                *given = (range, item);
                self.changed = true;
            }
            None => {
                self.given.push((range, item));
                self.changed = true;
            }
        }
        self.count += 1;
    }

    /// Adds a range if it is what the last step gave in this place, and no ranges met then: those added so far overlap
    /// none of each other, and none that is still to be added in this way. Else the step must begin again.
    #[inline]
    pub fn add_known(&mut self, item: usize, range: Range) -> bool {
        let known = self.conflicts.is_empty() && self.given.get(self.count) == Some(&(range, item));
        self.count += 1;
        known
    }

    /// Whether all that the last step gave was added.
    pub fn is_complete(&self) -> bool {
        !self.changed && self.count == self.given.len()
    }

    /// Ends the list of written ranges, and returns the items whose ranges meet another range in it.
    pub fn conflicts(&mut self) -> &[usize] {
        if self.changed || self.count != self.given.len() {
            self.given.truncate(self.count);
            self.sorted.clear();
            self.sorted.extend(self.given.iter().filter(|((start, end), _)| start < end));
            self.sorted.sort_unstable();
            self.conflicts.clear();
            let mut furthest: Option<(usize, usize)> = None; // (end, item) of the range that reaches furthest so far
            for &((start, end), item) in &self.sorted {
                if let Some((reach, other)) = furthest
                    && start < reach
                {
                    self.conflicts.extend([item, other]);
                }
                if furthest.is_none_or(|(reach, _)| end > reach) {
                    furthest = Some((end, item));
                }
            }
            self.conflicts.sort_unstable();
            self.conflicts.dedup();
        }
        &self.conflicts
    }

    /// Calls `f` with each item that writes into `range`. `hint` remembers where the range lay, for the next time.
    #[inline]
    pub fn meeting(&self, range: Range, hint: &mut u32, mut f: impl FnMut(usize)) {
        let (start, end) = range;
        if start >= end {
            return;
        }
        if !self.conflicts.is_empty() {
            // ends are in order only where ranges do not overlap
            let meets = |&&((s, e), _): &&(Range, usize)| s < end && start < e;
            return self.sorted.iter().filter(meets).for_each(|&(_, item)| f(item));
        }
        let place = *hint as usize;
        let after_previous = place == 0 || self.sorted.get(place - 1).is_some_and(|&((_, e), _)| e <= start);
        let before_next = self.sorted.get(place).map_or(place == self.sorted.len(), |&((s, _), _)| end <= s);
        if after_previous && before_next {
            return;
        }
        let mut place = self.sorted.partition_point(|&((_, e), _)| e <= start);
        *hint = place as u32;
        while let Some(&((s, _), item)) = self.sorted.get(place) {
            if s >= end {
                break;
            }
            f(item);
            place += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(ranges: &[(usize, usize)]) -> Written {
        let mut written = Written::default();
        written.begin();
        ranges.iter().enumerate().for_each(|(item, &range)| written.add(item, range));
        written
    }

    fn meeting(written: &Written, range: Range) -> Vec<usize> {
        let (mut hint, mut items) = (0, Vec::new());
        written.meeting(range, &mut hint, |item| items.push(item));
        let mut again = Vec::new();
        written.meeting(range, &mut hint, |item| again.push(item));
        assert_eq!(items, again, "the hint must not change the answer");
        items
    }

    #[test]
    fn neighbours_do_not_conflict() {
        assert_eq!(written(&[(10, 20), (20, 30), (0, 10), (15, 15)]).conflicts(), &[] as &[usize]);
    }

    #[test]
    fn conflicts_name_both_sides_however_far_apart() {
        assert_eq!(written(&[(0, 100), (10, 20), (30, 40), (100, 110)]).conflicts(), &[0, 1, 2]);
        assert_eq!(written(&[(5, 6), (5, 6)]).conflicts(), &[0, 1]);
    }

    #[test]
    fn a_changed_range_is_noticed() {
        let mut written = written(&[(0, 10), (10, 20)]);
        assert!(written.conflicts().is_empty());
        written.begin();
        written.add(0, (0, 10));
        written.add(1, (9, 20));
        assert_eq!(written.conflicts(), &[0, 1]);
        written.begin();
        written.add(0, (0, 10));
        assert!(written.conflicts().is_empty());
    }

    #[test]
    fn known_ranges_are_those_of_the_last_step() {
        let mut written = written(&[(0, 10), (10, 20)]);
        written.conflicts();
        written.begin();
        assert!(written.add_known(0, (0, 10)) && !written.is_complete());
        assert!(written.add_known(1, (10, 20)) && written.is_complete());
        assert!(!written.add_known(2, (20, 30)));
        written.begin();
        assert!(!written.add_known(0, (0, 11)));
        assert!(!written.add_known(0, (10, 20)));
        let mut conflicting = super::tests::written(&[(0, 10), (5, 20)]);
        conflicting.conflicts();
        conflicting.begin();
        assert!(!conflicting.add_known(0, (0, 10)));
    }

    #[test]
    fn ranges_read_meet_what_is_written() {
        let mut written = written(&[(10, 20), (30, 40), (40, 50)]);
        written.conflicts();
        assert_eq!(meeting(&written, (0, 10)), []);
        assert_eq!(meeting(&written, (20, 30)), []);
        assert_eq!(meeting(&written, (50, 60)), []);
        assert_eq!(meeting(&written, (19, 21)), [0]);
        assert_eq!(meeting(&written, (35, 41)), [1, 2]);
        assert_eq!(meeting(&written, (0, 100)), [0, 1, 2]);
        assert_eq!(meeting(&written, (35, 35)), []);
    }
}
