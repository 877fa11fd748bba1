// Strings in one buffer, as ids are stored.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <string_view>

#include "base/huge.hpp"

namespace compressae {

// A hash that nobody can foresee, so that no file makes many strings collide.
inline std::uint64_t hash_of(std::string_view text) {
  static const std::uint64_t seed = std::uint64_t{std::random_device()()} << 32 | std::random_device()();
  std::uint64_t hash = seed ^ text.size();
  for (std::size_t at = 0; at < text.size(); at += 8) {
    std::uint64_t some = 0;
    std::memcpy(&some, text.data() + at, text.size() - at < 8 ? text.size() - at : 8);
    hash = (hash ^ some) * 0x9e3779b97f4a7c15;
    hash ^= hash >> 29;
  }
  return hash * 0xbf58476d1ce4e5b9;
}

// The first of n strings that equals one before it, or n. String i is text[ends[i]] ... text[ends[i + 1]], which must
// be inside; those that `counts` says false of are left out, unless it is null.
inline std::size_t first_repeated(const char* text, const std::int64_t* ends, std::size_t n, const bool* counts) {
  const auto at = [&](std::size_t i) {
    return std::string_view(text + ends[i], static_cast<std::size_t>(ends[i + 1] - ends[i]));
  };
  // A table of open addresses, at most half full: the lower bits of an entry are a string's number plus 1, the others
  // are of its hash.
  constexpr std::uint64_t kNumber = (std::uint64_t{1} << 40) - 1;
  HugeVector<std::uint64_t> table(std::bit_ceil(2 * n + 1));
  const auto home = [&](std::uint64_t hash) -> std::size_t { return hash >> 20 & (table.size() - 1); };
  // Many places are fetched at once, as each is a wait for memory.
  constexpr std::size_t kAhead = 64;
  std::uint64_t hashes[kAhead];
  for (std::size_t first = 0; first < n; first += kAhead) {
    const std::size_t last = std::min(first + kAhead, n);
    for (std::size_t i = first; i < last; ++i) {
      hashes[i - first] = hash_of(at(i));
      __builtin_prefetch(table.data() + home(hashes[i - first]), 1);
    }
    for (std::size_t i = first; i < last; ++i) {
      if (counts != nullptr && !counts[i]) continue;
      const std::uint64_t hash = hashes[i - first];
      std::size_t place = home(hash);
      for (; table[place] != 0; place = (place + 1) & (table.size() - 1))
        if (((table[place] ^ hash) & ~kNumber) == 0 && at((table[place] & kNumber) - 1) == at(i)) return i;
      table[place] = (hash & ~kNumber) | (i + 1);
    }
  }
  return n;
}

}  // namespace compressae
