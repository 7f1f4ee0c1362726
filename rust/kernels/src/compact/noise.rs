//! Random bits for rounding with fair odds: a function of a key and an element's number, so that they depend on neither
//! threads nor SIMD level nor what was drawn before.

/// A key for the elements of one parameter at one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Noise {
    key: u64,
    /// The number of the first element: of a shard, in the whole of which it is a part.
    first: u64,
}

impl Noise {
    /// The key of a parameter at a step. `place` is any numbers that tell it from other parameters.
    pub fn new(seed: u64, place: [u64; 2], step: u64) -> Self {
        let key = [place[0], place[1], step].into_iter().fold(mixed(seed), |key, word| mixed(key ^ word));
        Self { key, first: 0 }
    }

    /// The same, for elements that are counted from this one on.
    pub fn starting_at(self, first: u64) -> Self {
        Self { first, ..self }
    }

    /// The bits for one of its streams, from some element on.
    #[inline]
    pub(crate) fn stream(&self, stream: usize, start: usize) -> Bits {
        let key = mixed(self.key ^ stream as u64);
        let first = self.first.wrapping_add(start as u64);
        // what a number of 32 bits cannot tell of the element goes into the key
        let key = if first >> 32 == 0 { key } else { mixed(key ^ (first >> 32)) };
        Bits { first: first as u32, add: key as u32, flip: (key >> 32) as u32 }
    }
}

/// Steps of SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
fn mixed(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Random bits for elements that follow each other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bits {
    first: u32,
    add: u32,
    flip: u32,
}

impl Bits {
    /// A word for the `i`-th element, of which the upper 24 bits are random: two rounds of a multiplicative hash, with
    /// the key before each of them.
    #[inline(always)]
    pub(crate) fn word(&self, i: usize) -> u32 {
        let x = self.first.wrapping_add(i as u32).wrapping_mul(0x9e37_79b1).wrapping_add(self.add);
        (x ^ (x >> 16) ^ self.flip).wrapping_mul(0x2c1b_3c6d)
    }

    /// As they were, for elements further on.
    #[inline(always)]
    pub(crate) fn skip(self, elements: usize) -> Self {
        Self { first: self.first.wrapping_add(elements as u32), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(noise: Noise, stream: usize, start: usize, n: usize) -> Vec<u32> {
        let bits = noise.stream(stream, start);
        (0..n).map(|i| bits.word(i)).collect()
    }

    #[test]
    fn bits_belong_to_elements_and_not_to_how_they_are_cut() {
        let noise = Noise::new(7, [0, 1], 3);
        let all = words(noise, 0, 0, 1000);
        assert_eq!(words(noise, 0, 300, 700), all[300..]);
        assert_eq!(words(noise.starting_at(300), 0, 0, 700), all[300..]);
        let skipped = noise.stream(0, 100).skip(200);
        assert_eq!(skipped.word(5), all[305]);
    }

    /// The correlation of two lists of words, as a normal variable if they are independent.
    fn correlation(a: &[u32], b: &[u32]) -> f64 {
        let centred = |x: &u32| (f64::from(*x) + 0.5) / f64::from(u32::MAX) - 0.5;
        let sum: f64 = a.iter().zip(b).map(|(a, b)| centred(a) * centred(b)).sum();
        sum * 12.0 / (a.len() as f64).sqrt()
    }

    #[test]
    fn bits_are_even_and_those_of_neighbours_tensors_steps_and_streams_have_nothing_in_common() {
        let n = 1 << 16;
        let noise = Noise::new(0, [0, 0], 1);
        let all = words(noise, 0, 0, n);
        for bit in 8..32 {
            let ones = all.iter().filter(|word| *word >> bit & 1 == 1).count() as f64;
            assert!((ones - n as f64 / 2.0).abs() < 5.0 * (n as f64 / 4.0).sqrt(), "bit {bit}: {ones}");
        }
        let others = [
            ("next element", words(noise, 0, 1, n)),
            ("next but one", words(noise, 0, 2, n)),
            ("a block on", words(noise, 0, 256, n)),
            ("stream", words(noise, 1, 0, n)),
            ("step", words(Noise::new(0, [0, 0], 2), 0, 0, n)),
            ("parameter", words(Noise::new(0, [0, 1], 1), 0, 0, n)),
            ("group", words(Noise::new(0, [1, 0], 1), 0, 0, n)),
            ("seed", words(Noise::new(1, [0, 0], 1), 0, 0, n)),
            ("beyond 32 bits", words(noise, 0, 1 << 32, n)),
        ];
        for (what, other) in others {
            let found = correlation(&all, &other);
            assert!(found.abs() < 5.0, "{what}: {found} standard deviations");
        }
    }
}
