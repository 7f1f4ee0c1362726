//! Random bits for rounding with fair odds: a function of a key and an element's number, so that they depend on neither
//! threads nor SIMD level nor what was drawn before.

/// Elements of a block, whose random bits are made together, and whose codes have a header.
pub const BLOCK: usize = 256;

/// Words for the elements of a block.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Words(pub(crate) [u32; BLOCK]);

impl Default for Words {
    fn default() -> Self {
        Self([0; BLOCK])
    }
}

/// A turn by the golden section, of whose multiples any few that follow each other lie evenly.
const GOLDEN: u32 = 0x9e37_79b9;

/// Elements of a block that share their bits with the other half.
const HALF: usize = BLOCK / 2;

/// A key for the elements of one parameter at one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Noise {
    key: u64,
    /// The same at every step.
    still: u64,
    /// How far words are turned at this one.
    turn: u32,
    /// The number of the first element: of a shard, in the whole of which it is a part.
    first: u64,
}

impl Noise {
    /// The key of a parameter at a step. `place` is any numbers that tell it from other parameters.
    pub fn new(seed: u64, place: [u64; 2], step: u64) -> Self {
        let still = place.into_iter().fold(mixed(seed), |key, word| mixed(key ^ word));
        let turn = (step as u32).wrapping_mul(GOLDEN);
        Self { key: mixed(still ^ step), still: !still, turn, first: 0 }
    }

    /// The same, for elements that are counted from this one on.
    pub fn starting_at(self, first: u64) -> Self {
        Self { first, ..self }
    }

    /// The bits for one of its streams, from some element on.
    #[inline]
    pub(crate) fn stream(&self, stream: usize, start: usize) -> Bits {
        let [key, still] = [self.key, self.still].map(|key| mixed(key ^ stream as u64));
        Bits { key, still, turn: self.turn, first: self.first.wrapping_add(start as u64) }
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
    key: u64,
    still: u64,
    turn: u32,
    first: u64,
}

impl Bits {
    /// As they were, for elements further on.
    #[inline(always)]
    pub(crate) fn skip(self, elements: usize) -> Self {
        Self { first: self.first.wrapping_add(elements as u64), ..self }
    }

    /// The same words at every step, but that each is turned on by the golden section from one step to the next.
    ///
    /// At any one step they are as random as others. Over steps an element's words lie evenly, so that it is rounded up
    /// as often as it should be among any few steps, not only in the long run: the mean of what rounding adds is
    /// smaller.
    #[inline(always)]
    pub(crate) fn turning(&self, words: &mut Words) {
        Self { key: self.still, ..*self }.words(words);
        for word in &mut words.0 {
            *word = word.wrapping_add(self.turn);
        }
    }

    /// A word for each of the next elements: sixteen random bits on top; those below mean nothing.
    #[inline(always)]
    pub(crate) fn words(&self, Words(out): &mut Words) {
        let (number, at) = (self.first / BLOCK as u64, (self.first % BLOCK as u64) as usize);
        if at == 0 {
            return self.block(number, out);
        }
        // a part of something whose beginning lies anywhere: the end of one block, and the beginning of the next
        let mut blocks = [[0; BLOCK]; 2];
        let [one, two] = &mut blocks;
        self.block(number, one);
        self.block(number.wrapping_add(1), two);
        out.copy_from_slice(&blocks.as_flattened()[at..at + BLOCK]);
    }

    /// The words of the block of this number. Two elements share what is computed: two rounds of a multiplicative hash,
    /// with the key before each of them.
    #[inline(always)]
    fn block(&self, number: u64, out: &mut [u32; BLOCK]) {
        // what a number of 32 bits cannot tell of the element goes into the key
        let upper = number >> 25;
        let key = if upper == 0 { self.key } else { mixed(self.key ^ upper) };
        let (add, flip) = (key as u32, (key >> 32) as u32);
        let first = (number as u32).wrapping_mul(HALF as u32);
        let (high, low) = out.split_at_mut(HALF);
        for (i, (high, low)) in high.iter_mut().zip(low).enumerate() {
            let x = first.wrapping_add(i as u32).wrapping_mul(0x9e37_79b1).wrapping_add(add);
            let x = (x ^ (x >> 16) ^ flip).wrapping_mul(0x2c1b_3c6d);
            let x = x ^ (x >> 15);
            (*high, *low) = (x, x << 16);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(noise: Noise, stream: usize, start: usize, n: usize) -> Vec<u32> {
        let bits = noise.stream(stream, start);
        let mut all = Vec::new();
        while all.len() < n {
            let mut words = Words::default();
            bits.skip(all.len()).words(&mut words);
            all.extend(words.0.map(|word| word >> 16));
        }
        all.truncate(n);
        all
    }

    #[test]
    fn bits_belong_to_elements_and_not_to_how_they_are_cut() {
        let noise = Noise::new(7, [0, 1], 3);
        let all = words(noise, 0, 0, 1000);
        assert_eq!(words(noise, 0, 300, 700), all[300..]);
        assert_eq!(words(noise.starting_at(300), 0, 0, 700), all[300..]);
        let far = (1 << 33) - 512;
        let all = words(noise, 0, far, 1024);
        assert_eq!(words(noise, 0, far + 500, 524), all[500..]);
    }

    #[test]
    fn turning_words_are_as_random_as_others_at_one_step() {
        let turning = |noise: Noise, stream: usize| {
            let mut words = Words::default();
            let bits = noise.stream(stream, 0);
            let mut all = Vec::new();
            for block in 0..256 {
                bits.skip(block * BLOCK).turning(&mut words);
                all.extend(words.0.map(|word| word >> 16));
            }
            all
        };
        let noise = |seed, step| Noise::new(seed, [0, 0], step);
        let all = turning(noise(0, 9), 1);
        let others = [
            ("next element", [&all[1..], &all[..1]].concat()),
            ("a block on", [&all[BLOCK..], &all[..BLOCK]].concat()),
            ("stream", turning(noise(0, 9), 2)),
            ("seed", turning(noise(1, 9), 1)),
            ("what does not turn", words(noise(0, 9), 1, 0, all.len())),
        ];
        for (what, other) in others {
            let found = correlation(&all, &other);
            assert!(found.abs() < 5.0, "{what}: {found} standard deviations");
        }
        // and from step to step each goes on by the same
        for (a, b) in all.iter().zip(turning(noise(0, 10), 1)) {
            assert!(b.wrapping_sub(*a + (GOLDEN >> 16)) & 0xffff <= 1);
        }
    }

    /// The correlation of two lists of words, as a normal variable if they are independent.
    fn correlation(a: &[u32], b: &[u32]) -> f64 {
        let centred = |x: &u32| (f64::from(*x) + 0.5) / 65536.0 - 0.5;
        let sum: f64 = a.iter().zip(b).map(|(a, b)| centred(a) * centred(b)).sum();
        sum * 12.0 / (a.len() as f64).sqrt()
    }

    #[test]
    fn bits_are_even_and_those_of_neighbours_tensors_steps_and_streams_have_nothing_in_common() {
        let n = 1 << 16;
        let noise = Noise::new(0, [0, 0], 1);
        let all = words(noise, 0, 0, n);
        for bit in 0..16 {
            let ones = all.iter().filter(|word| *word >> bit & 1 == 1).count() as f64;
            assert!((ones - n as f64 / 2.0).abs() < 5.0 * (n as f64 / 4.0).sqrt(), "bit {bit}: {ones}");
        }
        let others = [
            ("next element", words(noise, 0, 1, n)),
            ("next but one", words(noise, 0, 2, n)),
            ("what shares a computation", words(noise, 0, HALF, n)),
            ("a block on", words(noise, 0, BLOCK, n)),
            ("stream", words(noise, 1, 0, n)),
            ("step", words(Noise::new(0, [0, 0], 2), 0, 0, n)),
            ("parameter", words(Noise::new(0, [0, 1], 1), 0, 0, n)),
            ("group", words(Noise::new(0, [1, 0], 1), 0, 0, n)),
            ("seed", words(Noise::new(1, [0, 0], 1), 0, 0, n)),
            ("beyond 32 bits", words(noise, 0, 1 << 33, n)),
        ];
        for (what, other) in others {
            let found = correlation(&all, &other);
            assert!(found.abs() < 5.0, "{what}: {found} standard deviations");
        }
    }
}
