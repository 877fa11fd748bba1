// The vocabulary of vectors.hpp in NEON, as every aarch64 processor has it.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

namespace compressae {
namespace {

using Int16s = int16x8_t;
using EightInt16s = int16x8_t;
using Int32s = int32x4_t;

// 8 lanes in two registers.
struct Uint32s {
  uint32x4_t low, high;
};
struct Floats {
  float32x4_t low, high;
};
using Floats8 = Floats;

inline Int16s repeated(std::int16_t x) { return vdupq_n_s16(x); }
inline Int32s repeated(std::int32_t x) { return vdupq_n_s32(x); }
inline Floats repeated(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }

inline Int16s larger(Int16s x, Int16s y) { return vmaxq_s16(x, y); }
inline bool any_above(Int16s x, std::int16_t threshold) { return vmaxvq_s16(x) > threshold; }

// NEON has no instruction for this. Each lane keeps the one bit of its own place within its byte of the result; then
// neighbours are added, three times, until 8 lanes are one byte.
inline std::uint32_t bits_above(const Int16s* x, std::int16_t threshold) {
  const int16x8_t bound = vdupq_n_s16(threshold);
  const uint8x16_t places = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const auto sixteen = [&](std::size_t i) {
    const uint8x16_t above =
        vuzp1q_u8(vreinterpretq_u8_u16(vcgtq_s16(x[i], bound)), vreinterpretq_u8_u16(vcgtq_s16(x[i + 1], bound)));
    return vandq_u8(above, places);
  };
  uint8x16_t sums = vpaddq_u8(sixteen(0), sixteen(2));
  sums = vpaddq_u8(sums, sums);
  sums = vpaddq_u8(sums, sums);
  return vgetq_lane_u32(vreinterpretq_u32_u8(sums), 0);
}

inline Int16s upper_bytes(const std::int8_t* bytes) { return vshll_n_s8(vld1_s8(bytes), 8); }
inline Int16s upper_bytes(std::uint64_t eight_bytes) { return vshll_n_s8(vcreate_s8(eight_bytes), 8); }

// NEON doubles, rounds and takes the upper half: (2 * x * y + (1 << 15)) >> 16.
inline Int16s multiply_rounded(Int16s x, Int16s y) { return vqrdmulhq_s16(x, y); }

inline void sums_of_four(const Int32s* x, std::int32_t* sums) {
  store(sums, vpaddq_s32(vpaddq_s32(x[0], x[1]), vpaddq_s32(x[2], x[3])));
}

inline void interleave_bytes(Int32s* x) {
  const auto bytes = [x](std::size_t i) { return vreinterpretq_u8_s32(x[i]); };
  const auto pairs = [](uint8x16_t two) { return vreinterpretq_u16_u8(two); };
  const uint16x8_t two = pairs(vzip1q_u8(bytes(0), bytes(1))), two_more = pairs(vzip2q_u8(bytes(0), bytes(1)));
  const uint16x8_t others = pairs(vzip1q_u8(bytes(2), bytes(3))), more = pairs(vzip2q_u8(bytes(2), bytes(3)));
  x[0] = vreinterpretq_s32_u16(vzip1q_u16(two, others));
  x[1] = vreinterpretq_s32_u16(vzip2q_u16(two, others));
  x[2] = vreinterpretq_s32_u16(vzip1q_u16(two_more, more));
  x[3] = vreinterpretq_s32_u16(vzip2q_u16(two_more, more));
}

inline Floats floats_of(const std::int8_t* bytes) {
  const int16x8_t wide = vmovl_s8(vld1_s8(bytes));
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))), vcvtq_f32_s32(vmovl_high_s16(wide))};
}

inline Floats multiply_add(Floats x, Floats y, Floats sums) {
  return {vfmaq_f32(sums.low, x.low, y.low), vfmaq_f32(sums.high, x.high, y.high)};
}
inline Floats8 add_by_eights(Floats x, Floats y, Floats8 sums) { return multiply_add(x, y, sums); }

// In the order of the other instruction sets, so that the sum is theirs to the last bit.
inline float sum_of(Floats8 x) {
  const float32x4_t four = x.low + x.high;
  const float32x2_t two = vget_low_f32(four) + vget_high_f32(four);
  return vpadds_f32(two);
}

inline Uint32s operator+(Uint32s x, Uint32s y) { return {x.low + y.low, x.high + y.high}; }
inline Uint32s operator-(Uint32s x, Uint32s y) { return {x.low - y.low, x.high - y.high}; }
inline Uint32s operator+(Uint32s x, std::uint32_t y) { return {x.low + y, x.high + y}; }
inline Uint32s operator&(Uint32s x, std::uint32_t y) { return {x.low & y, x.high & y}; }
inline Uint32s operator>>(Uint32s x, Uint32s n) { return {x.low >> n.low, x.high >> n.high}; }

inline Uint32s shift_left(Uint32s x, std::size_t n) {
  const int32x4_t by = vdupq_n_s32(static_cast<std::int32_t>(n));
  return {vshlq_u32(x.low, by), vshlq_u32(x.high, by)};
}

inline Uint32s zero_upwards() { return {uint32x4_t{0, 1, 2, 3}, uint32x4_t{4, 5, 6, 7}}; }

inline Uint32s widened(const std::uint16_t* numbers) {
  const uint16x8_t narrow = vld1q_u16(numbers);
  return {vmovl_u16(vget_low_u16(narrow)), vmovl_high_u16(narrow)};
}

inline Floats gather(const float* table, Uint32s index) {
  const auto four = [table](uint32x4_t at) {
    return float32x4_t{table[at[0]], table[at[1]], table[at[2]], table[at[3]]};
  };
  return {four(index.low), four(index.high)};
}

inline Floats keep_first(Floats x, std::size_t n) {
  const auto kept = [n](float32x4_t four, uint32x4_t lanes) {
    const uint32x4_t some = vcltq_u32(lanes, vdupq_n_u32(static_cast<std::uint32_t>(n)));
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(four), some));
  };
  const Uint32s lanes = zero_upwards();
  return {kept(x.low, lanes.low), kept(x.high, lanes.high)};
}

}  // namespace
}  // namespace compressae
