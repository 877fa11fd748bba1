// Takes the hits of a window: documents whose scores exceed a threshold. Few do, so that whole groups are left out by
// the largest of their scores.
#pragma once

#include "kernels/kernels.hpp"
#include "kernels/vectors.hpp"

namespace compressae {
namespace {

void group_maxima(const std::int16_t* scores, std::size_t count, std::size_t n_groups, std::int16_t* largest) {
  for (std::size_t begin = 0; begin < n_groups; begin += kGroup) {
    std::int16_t some[kGroup];
    __builtin_memcpy(some, scores + begin, sizeof some);
    for (std::size_t first = begin + n_groups; first < count; first += n_groups) {
#pragma omp simd
      for (std::size_t i = 0; i < kGroup; ++i) some[i] = scores[first + i] > some[i] ? scores[first + i] : some[i];
    }
    __builtin_memcpy(largest + begin, some, sizeof some);
  }
}

std::size_t count_above(const std::int16_t* scores, std::size_t count, std::int16_t threshold) {
  std::size_t above = 0;
  for (std::size_t begin = 0; begin < count; begin += kGroup) {
    // As many as 16 bits hold: lanes as wide as the scores.
    std::int16_t in_group = 0;
#pragma omp simd reduction(+ : in_group)
    for (std::size_t i = 0; i < kGroup; ++i)
      in_group = static_cast<std::int16_t>(in_group + (scores[begin + i] > threshold));
    above += static_cast<std::size_t>(in_group);
  }
  return above;
}

std::size_t count_bits(const std::uint8_t* bytes, std::size_t count) {
  std::size_t n_bits = 0, i = 0;
  for (; i + 8 <= count; i += 8)
    n_bits += static_cast<std::size_t>(__builtin_popcountll(load<std::uint64_t>(bytes + i)));
  for (; i < count; ++i) n_bits += static_cast<std::size_t>(__builtin_popcount(bytes[i]));
  return n_bits;
}

// The documents that may be hits.
struct Asked {
  std::size_t end;              // documents below it
  const std::uint8_t* allowed;  // whose bit is set (nullptr: all)

  // Bits of up to 32 of them from `at`, a multiple of 32 below `end`.
  std::uint32_t bits(std::size_t at) const {
    if (end - at >= 32) return allowed == nullptr ? 0xffffffff : load<std::uint32_t>(allowed + at / 8);
    const std::uint32_t inside = (std::uint32_t{1} << (end - at)) - 1;
    if (allowed == nullptr) return inside;
    std::uint32_t bits = 0;
    for (std::size_t byte = 0; 8 * byte < end - at; ++byte)
      bits |= static_cast<std::uint32_t>(allowed[at / 8 + byte]) << 8 * byte;
    return bits & inside;
  }
};

// Where hits are written.
struct Found {
  std::uint16_t* positions;
  std::int16_t* scores;
  std::size_t count;
};

// Adds the hits among 32 scores, of documents from `at` on: bit i of `above` says whether score i exceeds the
// threshold.
inline void add_hits(const std::int16_t* scores, std::uint32_t above, std::size_t at, const Asked& asked,
                     Found& found) {
  if (above == 0 || at >= asked.end) return;
  for (std::uint32_t bits = above & asked.bits(at); bits != 0; bits &= bits - 1) {
    const auto i = static_cast<std::size_t>(__builtin_ctz(bits));
    found.positions[found.count] = static_cast<std::uint16_t>(at + i);
    found.scores[found.count++] = scores[i];
  }
}

namespace plain {

// Takes the group of scores that begins at document `at`, and leaves zeros.
inline void take_group(std::int16_t* scores, std::int16_t threshold, std::size_t at, const Asked& asked, Found& found) {
  alignas(64) std::int16_t group[kGroup];
  std::int16_t largest = scores[at];
#pragma omp simd reduction(max : largest)
  for (std::size_t i = 0; i < kGroup; ++i) largest = scores[at + i] > largest ? scores[at + i] : largest;
  __builtin_memcpy(group, scores + at, sizeof group);
  __builtin_memset(scores + at, 0, sizeof group);
  if (largest <= threshold) return;
  for (std::size_t first = 0; first < kGroup; first += 32) {
    std::int16_t n_above = 0;
#pragma omp simd reduction(+ : n_above)
    for (std::size_t i = 0; i < 32; ++i) n_above = static_cast<std::int16_t>(n_above + (group[first + i] > threshold));
    if (n_above == 0) continue;
    std::uint32_t above = 0;
    for (std::size_t i = 0; i < 32; ++i) above |= static_cast<std::uint32_t>(group[first + i] > threshold) << i;
    add_hits(group + first, above, at + first, asked, found);
  }
}

}  // namespace plain

#if defined(COMPRESSAE_PLAIN)
using plain::take_group;
#else

constexpr std::size_t kGroupVectors = kGroup / kInt16s;

#if defined(__AVX512VBMI2__)

alignas(64) constexpr std::int16_t kPositions[32] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                                     16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};

// Compress and store: the lanes that a mask names move together, and whole vectors are stored, of which the next store
// covers the rest (hence kHitSlack). No branch for each 32: which of them hold the hits cannot be foreseen.
inline void add_hits(const Int16s* group, std::int16_t threshold, std::size_t at, const Asked& asked, Found& found) {
  const bool all_asked = asked.allowed == nullptr && at + kGroup <= asked.end;
  for (std::size_t i = 0; i < kGroupVectors; ++i, at += 32) {
    std::uint32_t bits = bits_above(group + i, threshold);
    if (!all_asked) bits &= at < asked.end ? asked.bits(at) : 0;
    const Int16s positions = load<Int16s>(kPositions) + repeated(static_cast<std::int16_t>(at));
    store(found.positions + found.count, _mm512_maskz_compress_epi16(bits, raw(positions)));
    store(found.scores + found.count, _mm512_maskz_compress_epi16(bits, raw(group[i])));
    found.count += static_cast<std::size_t>(__builtin_popcount(bits));
  }
}

#else

inline void add_hits(const Int16s* group, std::int16_t threshold, std::size_t at, const Asked& asked, Found& found) {
  alignas(64) std::int16_t scores[kGroup];
#pragma GCC unroll 16
  for (std::size_t i = 0; i < kGroupVectors; ++i) store(scores + kInt16s * i, group[i]);
#pragma GCC unroll 4
  for (std::size_t first = 0; first < kGroup; first += 32)
    add_hits(scores + first, bits_above(group + first / kInt16s, threshold), at + first, asked, found);
}

#endif

inline void take_group(std::int16_t* scores, std::int16_t threshold, std::size_t at, const Asked& asked, Found& found) {
  Int16s group[kGroupVectors];
#pragma GCC unroll 16
  for (std::size_t i = 0; i < kGroupVectors; ++i) {
    group[i] = load<Int16s>(scores + at + kInt16s * i);
    store(scores + at + kInt16s * i, Int16s{});
  }
  Int16s largest = group[0];
#pragma GCC unroll 16
  for (std::size_t i = 1; i < kGroupVectors; ++i) largest = larger(largest, group[i]);
  if (any_above(largest, threshold)) add_hits(group, threshold, at, asked, found);
}

#endif

std::size_t harvest(std::int16_t* scores, std::size_t& begin, std::size_t end, std::int16_t threshold,
                    const std::uint8_t* allowed, std::uint16_t* positions, std::int16_t* hits) {
  const Asked asked{end, allowed};
  Found found{positions, hits, 0};
  std::size_t at = begin;
  for (; at < end && found.count + kGroup <= kHits; at += kGroup) take_group(scores, threshold, at, asked, found);
  begin = at;
  return found.count;
}

}  // namespace
}  // namespace compressae
