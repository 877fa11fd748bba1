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

// Groups whose largest scores are compared before hits are taken from them and they are set to 0, all in the
// first-level cache: a branch for each could not be foreseen.
constexpr std::size_t kMostGroups = 64;

namespace plain {

// Bit g: whether one of the scores of group g exceeds the threshold.
inline std::uint64_t groups_above(const std::int16_t* scores, std::size_t n_groups, std::int16_t threshold) {
  std::uint64_t groups = 0;
  for (std::size_t g = 0; g < n_groups; ++g) {
    const std::int16_t* group = scores + g * kGroup;
    std::int16_t largest = group[0];
#pragma omp simd reduction(max : largest)
    for (std::size_t i = 0; i < kGroup; ++i) largest = group[i] > largest ? group[i] : largest;
    groups |= static_cast<std::uint64_t>(largest > threshold) << g;
  }
  return groups;
}

// Bit i: whether score i of 32 exceeds the threshold.
inline std::uint32_t scores_above(const std::int16_t* scores, std::int16_t threshold) {
  std::uint32_t above = 0;
  for (std::size_t i = 0; i < 32; ++i) above |= static_cast<std::uint32_t>(scores[i] > threshold) << i;
  return above;
}

inline void clear_groups(std::int16_t* scores, std::size_t n_groups) {
  __builtin_memset(scores, 0, n_groups * kGroup * sizeof *scores);
}

}  // namespace plain

#if defined(COMPRESSAE_PLAIN)
using plain::clear_groups;
using plain::groups_above;
using plain::scores_above;
#else

inline std::uint64_t groups_above(const std::int16_t* scores, std::size_t n_groups, std::int16_t threshold) {
  std::uint64_t groups = 0;
  for (std::size_t g = 0; g < n_groups; ++g) {
    const std::int16_t* group = scores + g * kGroup;
    Int16s largest = load<Int16s>(group);
#pragma GCC unroll 8
    for (std::size_t i = kInt16s; i < kGroup; i += kInt16s) largest = larger(largest, load<Int16s>(group + i));
    groups |= static_cast<std::uint64_t>(any_above(largest, threshold)) << g;
  }
  return groups;
}

inline std::uint32_t scores_above(const std::int16_t* scores, std::int16_t threshold) {
  Int16s all[32 / kInt16s];
#pragma GCC unroll 4
  for (std::size_t i = 0; i < 32 / kInt16s; ++i) all[i] = load<Int16s>(scores + kInt16s * i);
  return bits_above(all, threshold);
}

inline void clear_groups(std::int16_t* scores, std::size_t n_groups) {
  for (std::int16_t* end = scores + n_groups * kGroup; scores != end; scores += kGroup) {
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kGroup; i += kInt16s) store(scores + i, Int16s{});
  }
}

#endif

#if defined(__AVX512VBMI2__)

alignas(64) constexpr std::int16_t kPositions[32] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                                     16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};

// Compress and store: the lanes that a mask names move together, and whole vectors are stored, of which the next store
// covers the rest (hence kHitSlack).
inline void add_hits(const std::int16_t* scores, std::uint32_t hits, std::size_t at, Found& found) {
  const Int16s positions = load<Int16s>(kPositions) + repeated(static_cast<std::int16_t>(at));
  store(found.positions + found.count, _mm512_maskz_compress_epi16(hits, raw(positions)));
  store(found.scores + found.count, _mm512_maskz_compress_epi16(hits, raw(load<Int16s>(scores))));
  found.count += static_cast<std::size_t>(__builtin_popcount(hits));
}

#else

// Adds those of 32 documents from `at` on whose bit is set.
inline void add_hits(const std::int16_t* scores, std::uint32_t hits, std::size_t at, Found& found) {
  for (; hits != 0; hits &= hits - 1) {
    const auto i = static_cast<std::size_t>(__builtin_ctz(hits));
    found.positions[found.count] = static_cast<std::uint16_t>(at + i);
    found.scores[found.count++] = scores[i];
  }
}

#endif

std::size_t harvest(std::int16_t* scores, std::size_t& begin, std::size_t end, std::int16_t threshold,
                    const std::uint8_t* allowed, std::uint16_t* positions, std::int16_t* hits) {
  const Asked asked{end, allowed};
  Found found{positions, hits, 0};
  for (bool is_full = false; begin < end && !is_full;) {
    const std::size_t n_left = (end - begin + kGroup - 1) / kGroup;
    std::size_t n_groups = n_left < kMostGroups ? n_left : kMostGroups;
    for (std::uint64_t groups = groups_above(scores + begin, n_groups, threshold); groups != 0; groups &= groups - 1) {
      const auto group = static_cast<std::size_t>(__builtin_ctzll(groups));
      if ((is_full = found.count + kGroup > kHits)) {
        n_groups = group;
        break;
      }
      const std::size_t first = begin + group * kGroup;
      for (std::size_t at = first; at < first + kGroup && at < end; at += 32)
        add_hits(scores + at, scores_above(scores + at, threshold) & asked.bits(at), at, found);
    }
    clear_groups(scores + begin, n_groups);
    begin += n_groups * kGroup;
  }
  return found.count;
}

}  // namespace
}  // namespace compressae
