// Half precision (IEEE binary16) as plain integers.
#pragma once

#include <cstdint>

namespace compressae {

// A finite half as a float: its bits, moved up, are a float that is too small by 2^112.
static inline float from_half(std::uint16_t half) {
  const std::uint32_t magnitude = static_cast<std::uint32_t>(half & 0x7fff) << 13;
  const float value = __builtin_bit_cast(float, magnitude) * 0x1p112f;
  return half & 0x8000 ? -value : value;
}

}  // namespace compressae
