// Compiled once for each instruction set. No function of the standard library is used here: an inline one
// compiled with wider instructions could be the copy that the linker keeps for the whole module.
#include "kernels.hpp"

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "half.hpp"

namespace compressae {
namespace {

void accumulate(const std::uint16_t* ids, const std::int8_t* values, std::size_t count, float weight,
                float* scores) {
  std::size_t i = 0;
  for (; i + 4 <= count; i += 4) {
    // The four documents differ, so that the four additions do not wait for each other.
    const float s0 = scores[ids[i]] + weight * static_cast<float>(values[i]);
    const float s1 = scores[ids[i + 1]] + weight * static_cast<float>(values[i + 1]);
    const float s2 = scores[ids[i + 2]] + weight * static_cast<float>(values[i + 2]);
    const float s3 = scores[ids[i + 3]] + weight * static_cast<float>(values[i + 3]);
    scores[ids[i]] = s0;
    scores[ids[i + 1]] = s1;
    scores[ids[i + 2]] = s2;
    scores[ids[i + 3]] = s3;
  }
  for (; i < count; ++i) scores[ids[i]] += weight * static_cast<float>(values[i]);
}

void block_max(const float* x, std::size_t count, float* maxima) {
  for (std::size_t begin = 0; begin < count; begin += kBlock) {
    float largest = x[begin];
#pragma omp simd reduction(max : largest)
    for (std::size_t i = 0; i < kBlock; ++i) largest = x[begin + i] > largest ? x[begin + i] : largest;
    maxima[begin / kBlock] = largest;
  }
}

std::size_t arg_max_abs(const float* x, std::size_t count) {
#if defined(__AVX512F__)
  // Two candidates a lane: enough to hide the latency of the comparison.
  __m512 best[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  __m512i where[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  __m512i index = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i step = _mm512_set1_epi32(16);
  for (std::size_t begin = 0; begin < count; begin += 32) {
    for (std::size_t i = 0; i < 2; ++i) {
      const __m512 magnitude = _mm512_abs_ps(_mm512_loadu_ps(x + begin + 16 * i));
      const __mmask16 larger = _mm512_cmp_ps_mask(magnitude, best[i], _CMP_GT_OQ);
      best[i] = _mm512_mask_mov_ps(best[i], larger, magnitude);
      where[i] = _mm512_mask_mov_epi32(where[i], larger, index);
      index = _mm512_add_epi32(index, step);
    }
  }
  const float largest = _mm512_reduce_max_ps(_mm512_max_ps(best[0], best[1]));
  const __m512 wanted = _mm512_set1_ps(largest);
  const __m512i none = _mm512_set1_epi32(0x7fffffff);
  __m512i lowest = none;
  for (std::size_t i = 0; i < 2; ++i)
    lowest = _mm512_min_epi32(
        lowest, _mm512_mask_mov_epi32(none, _mm512_cmp_ps_mask(best[i], wanted, _CMP_EQ_OQ), where[i]));
  return static_cast<std::size_t>(_mm512_reduce_min_epi32(lowest));
#else
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
#endif
}

float gather_dot(const std::uint16_t* latents, const std::int8_t* values, std::size_t k, const float* u) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (std::size_t i = 0; i < k; ++i) sum += u[latents[i]] * static_cast<float>(values[i]);
  return sum;
}

template <typename T>
T load(const std::uint8_t* bytes) {
  T value;
  __builtin_memcpy(&value, bytes, sizeof value);
  return value;
}

std::uint32_t number(const PackedField& field, const std::uint8_t* row, std::size_t i) {
  const std::size_t bit = field.start + i * field.width;
  return load<std::uint32_t>(row + bit / 8) >> bit % 8 & ((1u << field.width) - 1);
}

// Word w of the high parts, without what stands behind them.
std::uint64_t high_word(const PackedLayout& layout, const std::uint8_t* row, std::size_t w) {
  const std::uint64_t word = load<std::uint64_t>(row + 2 + 8 * w);
  const std::size_t bits = layout.high_bits - 64 * w;
  return bits < 64 ? word & ((std::uint64_t{1} << bits) - 1) : word;
}

// One pair after the other: for instruction sets without a kernel of their own, for short rows and huge k.
float packed_dot(const PackedLayout& layout, const std::uint8_t* row, const float* u) {
  const std::uint16_t scale = load<std::uint16_t>(row);
  const std::uint32_t index_mask = (1u << (layout.value.width - 1)) - 1;
  const bool is_short = scale & 0x8000;
  float sum = 0.0f;
  std::size_t i = 0;
  for (std::size_t w = 0; 64 * w < layout.high_bits; ++w) {
    for (std::uint64_t word = high_word(layout, row, w); word != 0; word &= word - 1, ++i) {
      if (i == layout.k) return 0.0f;
      const std::size_t high = 64 * w + static_cast<std::size_t>(__builtin_ctzll(word)) - i;
      const std::size_t latent = (high << layout.low.width) + number(layout.low, row, i);
      const std::uint32_t code = number(layout.value, row, i);
      if (is_short && (code & index_mask) == 0) continue;
      sum += u[latent & 0xffff] * layout.levels[code];
    }
  }
  return i == layout.k ? sum * from_half(scale & 0x7fff) : 0.0f;
}

void packed_dots(const PackedLayout& layout, const std::uint8_t* rows, std::size_t n_rows, const float* u,
                 float* scores) {
  for (std::size_t r = 0; r < n_rows; ++r) scores[r] = packed_dot(layout, rows + r * layout.row_bytes, u);
}

// Blocks between the one in use and the one to fetch: many rows at once are more streams than the hardware follows.
constexpr std::size_t kBlocksAhead = 4;

// A block of y stays in registers while all rows pass by.
void add_half_rows(const std::uint16_t* const* rows, const float* weights, std::size_t n_rows, std::size_t count,
                   float* y) {
  for (std::size_t begin = 0; begin < count; begin += kBlock) {
#if defined(__AVX512F__)
    __m512 sums[4];
    for (std::size_t i = 0; i < 4; ++i) sums[i] = _mm512_loadu_ps(y + begin + 16 * i);
    for (std::size_t r = 0; r < n_rows; ++r) {
      const auto* row = reinterpret_cast<const __m256i*>(rows[r] + begin);
      __builtin_prefetch(row + 4 * kBlocksAhead);
      __builtin_prefetch(row + 4 * kBlocksAhead + 2);
      const __m512 weight = _mm512_set1_ps(weights[r]);
      for (std::size_t i = 0; i < 4; ++i)
        sums[i] = _mm512_fmadd_ps(weight, _mm512_cvtph_ps(_mm256_loadu_si256(row + i)), sums[i]);
    }
    for (std::size_t i = 0; i < 4; ++i) _mm512_storeu_ps(y + begin + 16 * i, sums[i]);
#elif defined(__F16C__) && defined(__FMA__)
    __m256 sums[8];
    for (std::size_t i = 0; i < 8; ++i) sums[i] = _mm256_loadu_ps(y + begin + 8 * i);
    for (std::size_t r = 0; r < n_rows; ++r) {
      const auto* row = reinterpret_cast<const __m128i*>(rows[r] + begin);
      const __m256 weight = _mm256_set1_ps(weights[r]);
      for (std::size_t i = 0; i < 8; ++i)
        sums[i] = _mm256_fmadd_ps(weight, _mm256_cvtph_ps(_mm_loadu_si128(row + i)), sums[i]);
    }
    for (std::size_t i = 0; i < 8; ++i) _mm256_storeu_ps(y + begin + 8 * i, sums[i]);
#else
    for (std::size_t r = 0; r < n_rows; ++r) {
#pragma omp simd
      for (std::size_t i = 0; i < kBlock; ++i) y[begin + i] += weights[r] * from_half(rows[r][begin + i]);
    }
#endif
  }
}

float dot(const float* x, const float* y, std::size_t count) {
#if defined(__AVX512F__)
  __m512 sums = _mm512_setzero_ps();
  std::size_t i = 0;
  for (; i + 16 <= count; i += 16) sums = _mm512_fmadd_ps(_mm512_loadu_ps(x + i), _mm512_loadu_ps(y + i), sums);
  const auto rest = static_cast<__mmask16>((1u << (count - i)) - 1);
  sums = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(rest, x + i), _mm512_maskz_loadu_ps(rest, y + i), sums);
  return _mm512_reduce_add_ps(sums);
#else
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (std::size_t i = 0; i < count; ++i) sum += x[i] * y[i];
  return sum;
#endif
}

}  // namespace

extern const Kernels COMPRESSAE_KERNELS{accumulate, block_max, arg_max_abs, gather_dot,
                                         packed_dots, add_half_rows, dot};

}  // namespace compressae
