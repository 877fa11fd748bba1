// Which documents a search is among.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace compressae {

// A filter: one bit a document, the lowest bit of a byte first; no bitmap allows all.
struct Allowed {
  const std::uint8_t* bitmap = nullptr;

  bool all() const { return bitmap == nullptr; }
  bool operator()(std::size_t row) const { return bitmap == nullptr || (bitmap[row >> 3] >> (row & 7) & 1); }
};

// Calls visit(row) for the allowed rows of [first, last); first is a multiple of 64.
template <typename Visit>
void for_each_allowed(const Allowed& allowed, std::size_t first, std::size_t last, const Visit& visit) {
  for (std::size_t begin = first; begin < last; begin += 64) {
    const std::size_t count = std::min<std::size_t>(64, last - begin);
    std::uint64_t bits = 0;
    std::memcpy(&bits, allowed.bitmap + begin / 8, (count + 7) / 8);
    if (count < 64) bits &= (std::uint64_t{1} << count) - 1;
    for (; bits != 0; bits &= bits - 1) visit(begin + static_cast<std::size_t>(__builtin_ctzll(bits)));
  }
}

}  // namespace compressae
