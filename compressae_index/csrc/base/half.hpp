// Half precision (IEEE binary16) as plain integers, and norms in as many bits.
#pragma once

#include <cstdint>

namespace compressae {

// A finite half as a float: its bits, moved up, are a float that is too small by 2^112. No branch, as signs are
// what a processor cannot foresee.
static inline float from_half(std::uint16_t half) {
  const std::uint32_t sign = half & 0x8000u, magnitude = half & 0x7fffu;
  return __builtin_bit_cast(float, sign << 16 | magnitude << 13) * 0x1p112f;
}

inline constexpr float kLargestHalf = 65504.0f;

static inline bool is_finite_half(std::uint16_t half) { return (half & 0x7fff) < 0x7c00; }

// As scales are, where their sign means nothing.
static inline bool is_positive_half(std::uint16_t half) { return half < 0x7c00; }

// The smallest finite half that is not below a number, which is not negative; the largest half for greater ones.
static inline std::uint16_t to_half_up(float value) {
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, value * 0x1p-112f);
  const std::uint32_t half = (bits + 0x1fff) >> 13;
  return static_cast<std::uint16_t>(half < 0x7bff ? half : 0x7bff);
}

// The nearest finite half to a number that is not negative; of two, the even one.
static inline std::uint16_t to_half(float value) {
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, value * 0x1p-112f);
  const std::uint32_t half = (bits + 0xfff + (bits >> 13 & 1)) >> 13;
  return static_cast<std::uint16_t>(half < 0x7bff ? half : 0x7bff);
}

// A norm of 16 bits, 5 of the exponent and 11 of the mantissa of a float: from 2^-16, which stands for 0, too, to 2^16.
static inline float length_of(std::uint16_t norm) {
  return __builtin_bit_cast(float, (static_cast<std::uint32_t>(norm) << 12) + 0x37800000u);
}

static inline float half_square(std::uint16_t norm) { return 0.5f * length_of(norm) * length_of(norm); }

}  // namespace compressae
