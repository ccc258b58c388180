//! The numbers that every SIMD level rounds float32 to an 8-bit dtype with; the rounding itself is each level's.

/// An 8-bit float dtype: `(magnitude + rounding) >> shift` less `rebias` where normal; below that, adding `magic` as a float leaves the
/// rounded result in the low bits; nothing exceeds `max` but a NaN, which is all ones.
pub(crate) struct Fp8 {
    pub(crate) shift: u32,
    pub(crate) rebias: i32,
    pub(crate) min_normal: i32,
    pub(crate) magic: f32,
    pub(crate) max: i32,
}

impl Fp8 {
    /// 448 is the largest; overflow saturates.
    pub(crate) const E4M3: Self = Self { shift: 20, rebias: (127 - 7) << 3, min_normal: (128 - 7) << 23, magic: 16384.0, max: 0x7e };
    /// Overflow is infinity, 0x7c.
    pub(crate) const E5M2: Self = Self { shift: 21, rebias: (127 - 15) << 2, min_normal: (128 - 15) << 23, magic: 128.0, max: 0x7c };

    /// Half a unit in the last place, less one: the last kept bit is added to it, which makes ties even.
    pub(crate) const fn rounding(&self) -> i32 {
        (1 << (self.shift - 1)) - 1
    }
}

/// The float32 bits of infinity; a greater magnitude is a NaN.
pub(crate) const INFINITY: i32 = 0x7f80_0000;
/// All but the sign.
pub(crate) const MAGNITUDE: i32 = 0x7fff_ffff;
/// What makes a NaN of the 480 that float8_e4m3fn's NaN reads as, as torch does.
pub(crate) const E4M3_NAN: i32 = 0x7ff0_0000;
/// The bit that makes a NaN quiet.
pub(crate) const QUIET: i32 = 0x0040_0000;
