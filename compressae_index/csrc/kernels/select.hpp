// Finds the entries of a projection that are largest in magnitude.
#pragma once

#include "kernels/kernels.hpp"
#include "kernels/vectors.hpp"

namespace compressae {
namespace {

std::size_t count_at_least(const float* x, std::size_t count, float least) {
  std::uint32_t reached = 0;
#pragma omp simd reduction(+ : reached)
  for (std::size_t i = 0; i < count; ++i) reached += __builtin_fabsf(x[i]) >= least ? 1u : 0u;
  return reached;
}

namespace plain {

// Of count entries, those from `first` on; `found` are written already. Every position is written, and kept by counting
// it: no branch, as which entries are large cannot be foreseen.
inline std::size_t find_at_least(const float* x, std::size_t first, std::size_t count, float least, std::size_t found,
                                 std::uint32_t* positions) {
  for (std::size_t i = first; i < count; ++i) {
    positions[found] = static_cast<std::uint32_t>(i);
    found += __builtin_fabsf(x[i]) >= least ? 1u : 0u;
  }
  return found;
}

// The largest of each block, then the first entry of the first block that holds the largest of all.
inline std::size_t arg_max_abs(const float* x, std::size_t count) {
  float maxima[65536 / kBlock];
  std::size_t block = 0;
  for (std::size_t begin = 0; begin < count; begin += kBlock) {
    float largest = 0.0f;
#pragma omp simd reduction(max : largest)
    for (std::size_t i = 0; i < kBlock; ++i) {
      const float magnitude = __builtin_fabsf(x[begin + i]);
      largest = magnitude > largest ? magnitude : largest;
    }
    maxima[begin / kBlock] = largest;
    if (largest > maxima[block]) block = begin / kBlock;
  }
  std::size_t i = block * kBlock;
  while (__builtin_fabsf(x[i]) != maxima[block]) ++i;
  return i;
}

}  // namespace plain

#if defined(__AVX512BW__)

// Which entries are large cannot be foreseen, so nothing branches on it: the lanes of a vector that are go to its
// front, and all of it is stored, where the next one overwrites what is behind them.
std::size_t find_at_least(const float* x, std::size_t count, float least, std::uint32_t* positions) {
  std::size_t found = 0, i = 0;
  __m512i index = raw(zero_upwards());
  for (; i + 16 <= count; i += 16) {
    const __m512 some = _mm512_abs_ps(_mm512_loadu_ps(x + i));
    const __mmask16 reached = _mm512_cmp_ps_mask(some, repeated(least), _CMP_GE_OQ);
    _mm512_storeu_si512(positions + found, _mm512_maskz_compress_epi32(reached, index));
    found += static_cast<std::size_t>(__builtin_popcount(reached));
    index = _mm512_add_epi32(index, _mm512_set1_epi32(16));
  }
  return plain::find_at_least(x, i, count, least, found, positions);
}

// Each lane keeps the largest it has met and the first place of it; the lowest place among the lanes that hold the
// largest of all is the answer.
std::size_t arg_max_abs(const float* x, std::size_t count) {
  // Two candidates a lane: enough to hide the latency of the comparison.
  __m512 best[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  __m512i where[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  __m512i index = raw(zero_upwards());
  const __m512i step = _mm512_set1_epi32(16);
  for (std::size_t begin = 0; begin < count; begin += 32) {
    for (std::size_t i = 0; i < 2; ++i) {
      const __m512 magnitude = _mm512_abs_ps(_mm512_loadu_ps(x + begin + 16 * i));
      const __mmask16 exceeds = _mm512_cmp_ps_mask(magnitude, best[i], _CMP_GT_OQ);
      best[i] = _mm512_mask_mov_ps(best[i], exceeds, magnitude);
      where[i] = _mm512_mask_mov_epi32(where[i], exceeds, index);
      index = _mm512_add_epi32(index, step);
    }
  }
  const __m512 largest = _mm512_set1_ps(_mm512_reduce_max_ps(_mm512_max_ps(best[0], best[1])));
  const __m512i none = _mm512_set1_epi32(0x7fffffff);
  __m512i lowest = none;
  for (std::size_t i = 0; i < 2; ++i) {
    const __mmask16 holds_it = _mm512_cmp_ps_mask(best[i], largest, _CMP_EQ_OQ);
    lowest = _mm512_min_epi32(lowest, _mm512_mask_mov_epi32(none, holds_it, where[i]));
  }
  return static_cast<std::size_t>(_mm512_reduce_min_epi32(lowest));
}

#else

std::size_t find_at_least(const float* x, std::size_t count, float least, std::uint32_t* positions) {
  return plain::find_at_least(x, 0, count, least, 0, positions);
}

using plain::arg_max_abs;

#endif

}  // namespace
}  // namespace compressae
