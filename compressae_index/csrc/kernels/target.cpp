// Compiled once for each instruction set. No function of the standard library is used here: an inline one
// compiled with wider instructions could be the copy that the linker keeps for the whole module.
#include "kernels/kernels.hpp"

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "base/half.hpp"

namespace compressae {
namespace {

template <typename T>
T load(const std::uint8_t* bytes) {
  T value;
  __builtin_memcpy(&value, bytes, sizeof value);
  return value;
}

// What a list holds for the next window follows, about as long as for this one. The lists of a query are more than
// the hardware can follow, so it is fetched while this one's postings are added.
inline void fetch_next(const Postings& list, std::size_t at) {
  __builtin_prefetch(list.ids + list.count + at, 0, 2);
  __builtin_prefetch(list.values + list.count + at, 0, 2);
}

// Postings whose products are rounded side by side, then added one by one: their documents differ, so that no addition
// waits for another. That goes by kMany, by kFew, and at last once more by kFew, products that were added before set
// to 0: a loop over what is left would mispredict its end, and most lists are short in a window.
#if defined(__AVX2__)
#if defined(__AVX512BW__)
constexpr std::size_t kMany = 64;
#else
constexpr std::size_t kMany = 16;
#endif
constexpr std::size_t kFew = 8;

struct Products {
  std::int16_t weight;
  alignas(64) std::int16_t of[kMany];

  void many(const std::int8_t* values) {
#if defined(__AVX512BW__)
    for (std::size_t i = 0; i < kMany; i += 32) {
      const __m256i some = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + i));
      const __m512i shifted = _mm512_slli_epi16(_mm512_cvtepi8_epi16(some), 8);
      _mm512_store_si512(of + i, _mm512_mulhrs_epi16(shifted, _mm512_set1_epi16(weight)));
    }
#else
    const __m128i some = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
    const __m256i shifted = _mm256_slli_epi16(_mm256_cvtepi8_epi16(some), 8);
    _mm256_store_si256(reinterpret_cast<__m256i*>(of), _mm256_mulhrs_epi16(shifted, _mm256_set1_epi16(weight)));
#endif
  }

  void few(const std::int8_t* values, std::size_t left_out) {
    const std::uint64_t kept = ~std::uint64_t{0} << 8 * left_out;
    const std::uint64_t some = load<std::uint64_t>(reinterpret_cast<const std::uint8_t*>(values)) & kept;
    const __m128i shifted = _mm_slli_epi16(_mm_cvtepi8_epi16(_mm_cvtsi64_si128(static_cast<long long>(some))), 8);
    _mm_store_si128(reinterpret_cast<__m128i*>(of), _mm_mulhrs_epi16(shifted, _mm_set1_epi16(weight)));
  }
};
#endif

inline void accumulate_list(const Postings& list, std::int16_t* scores) {
  std::size_t i = 0;
#if defined(__AVX2__)
  if (list.count >= kFew) {
    Products products{list.weight, {}};
    const auto add = [&](std::size_t at, std::size_t j) {
      std::int16_t& score = scores[list.ids[at + j]];
      score = static_cast<std::int16_t>(score + products.of[j]);
    };
    for (; i + kMany <= list.count; i += kMany) {
      for (std::size_t at = 0; at < kMany; at += 32) fetch_next(list, i + 32 + at);
      products.many(list.values + i);
#pragma GCC unroll 64
      for (std::size_t j = 0; j < kMany; ++j) add(i, j);
    }
    if (i < list.count) fetch_next(list, i + 32);
    while (i < list.count) {
      const std::size_t at = i + kFew <= list.count ? i : list.count - kFew;
      products.few(list.values + at, i - at);
#pragma GCC unroll 8
      for (std::size_t j = 0; j < kFew; ++j) add(at, j);
      i = at + kFew;
    }
  }
#endif
  for (; i < list.count; ++i) {
    const std::int32_t product = (list.values[i] * list.weight + 64) >> 7;
    scores[list.ids[i]] = static_cast<std::int16_t>(scores[list.ids[i]] + product);
  }
}

void accumulate(const Postings* lists, std::size_t n_lists, std::int16_t* scores) {
  for (std::size_t i = 0; i < n_lists; ++i) {
    if (i + 1 < n_lists) {
      __builtin_prefetch(lists[i + 1].ids);
      __builtin_prefetch(lists[i + 1].ids + 32);
      __builtin_prefetch(lists[i + 1].values);
    }
    accumulate_list(lists[i], scores);
  }
}

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

// Bits of up to 32 allowed documents from `at`, which is a multiple of 32; none is set from `end` on.
std::uint32_t allowed_bits(const std::uint8_t* allowed, std::size_t at, std::size_t end) {
  if (end - at >= 32) return allowed == nullptr ? 0xffffffff : load<std::uint32_t>(allowed + at / 8);
  const std::uint32_t inside = (std::uint32_t{1} << (end - at)) - 1;
  if (allowed == nullptr) return inside;
  std::uint32_t bits = 0;
  for (std::size_t byte = 0; 8 * byte < end - at; ++byte)
    bits |= static_cast<std::uint32_t>(allowed[at / 8 + byte]) << 8 * byte;
  return bits & inside;
}

#if defined(__AVX512VBMI2__)
alignas(64) constexpr std::int16_t kPositions[32] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                                     16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};
#endif

std::size_t harvest(std::int16_t* scores, std::size_t& begin, std::size_t end, std::int16_t threshold,
                    const std::uint8_t* allowed, std::uint16_t* positions, std::int16_t* hits) {
  std::size_t n_hits = 0, at = begin;
  for (; at < end && n_hits + kGroup <= kHits; at += kGroup) {
    std::uint32_t above[kGroup / 32];
    alignas(64) std::int16_t group[kGroup];
#if defined(__AVX512BW__)
    const __m512i bound = _mm512_set1_epi16(threshold);
    __m512i some[4];
    for (std::size_t i = 0; i < 4; ++i) {
      some[i] = _mm512_loadu_si512(scores + at + 32 * i);
      _mm512_storeu_si512(scores + at + 32 * i, _mm512_setzero_si512());
    }
    const __m512i largest = _mm512_max_epi16(_mm512_max_epi16(some[0], some[1]), _mm512_max_epi16(some[2], some[3]));
    if (_mm512_cmpgt_epi16_mask(largest, bound) == 0) continue;
#if defined(__AVX512VBMI2__)
    // No branch for each 32: which of them hold the hits cannot be foreseen.
    const bool all_allowed = allowed == nullptr && at + kGroup <= end;
    for (std::size_t i = 0; i < 4; ++i) {
      std::uint32_t bits = _mm512_cmpgt_epi16_mask(some[i], bound);
      if (!all_allowed) bits &= at + 32 * i < end ? allowed_bits(allowed, at + 32 * i, end) : 0;
      const __m512i position =
          _mm512_add_epi16(_mm512_load_si512(kPositions), _mm512_set1_epi16(static_cast<std::int16_t>(at + 32 * i)));
      _mm512_storeu_si512(positions + n_hits, _mm512_maskz_compress_epi16(bits, position));
      _mm512_storeu_si512(hits + n_hits, _mm512_maskz_compress_epi16(bits, some[i]));
      n_hits += static_cast<std::size_t>(__builtin_popcount(bits));
    }
    continue;
#endif
    for (std::size_t i = 0; i < 4; ++i) {
      above[i] = _mm512_cmpgt_epi16_mask(some[i], bound);
      _mm512_store_si512(group + 32 * i, some[i]);
    }
#elif defined(__AVX2__)
    const __m256i bound = _mm256_set1_epi16(threshold);
    auto* some = reinterpret_cast<__m256i*>(group);
    __m256i any = _mm256_setzero_si256();
    for (std::size_t i = 0; i < 8; ++i) {
      auto* place = reinterpret_cast<__m256i*>(scores + at + 16 * i);
      some[i] = _mm256_loadu_si256(place);
      any = _mm256_or_si256(any, _mm256_cmpgt_epi16(some[i], bound));
      _mm256_storeu_si256(place, _mm256_setzero_si256());
    }
    if (_mm256_testz_si256(any, any)) continue;
    for (std::size_t i = 0; i < 4; ++i) {
      const __m256i lower = _mm256_cmpgt_epi16(some[2 * i], bound), upper = _mm256_cmpgt_epi16(some[2 * i + 1], bound);
      // Packing goes by halves of a register: the order is put right.
      const __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi16(lower, upper), 0xd8);
      above[i] = static_cast<std::uint32_t>(_mm256_movemask_epi8(both));
    }
#else
    std::int16_t largest = scores[at];
#pragma omp simd reduction(max : largest)
    for (std::size_t i = 0; i < kGroup; ++i) largest = scores[at + i] > largest ? scores[at + i] : largest;
    __builtin_memcpy(group, scores + at, sizeof group);
    __builtin_memset(scores + at, 0, sizeof group);
    if (largest <= threshold) continue;
    for (std::size_t i = 0; i < kGroup / 32; ++i) {
      above[i] = 0;
      std::int16_t n_above = 0;
#pragma omp simd reduction(+ : n_above)
      for (std::size_t j = 0; j < 32; ++j)
        n_above = static_cast<std::int16_t>(n_above + (group[32 * i + j] > threshold));
      if (n_above == 0) continue;
      for (std::size_t j = 0; j < 32; ++j) above[i] |= static_cast<std::uint32_t>(group[32 * i + j] > threshold) << j;
    }
#endif
    for (std::size_t i = 0; i < kGroup / 32 && at + 32 * i < end; ++i) {
      std::uint32_t bits = above[i];
      if (bits != 0) bits &= allowed_bits(allowed, at + 32 * i, end);
      for (; bits != 0; bits &= bits - 1) {
        const std::size_t j = 32 * i + static_cast<std::size_t>(__builtin_ctz(bits));
        positions[n_hits] = static_cast<std::uint16_t>(at + j);
        hits[n_hits++] = group[j];
      }
    }
  }
  begin = at;
  return n_hits;
}

std::size_t count_bits(const std::uint8_t* bytes, std::size_t count) {
  std::size_t n_bits = 0, i = 0;
  for (; i + 8 <= count; i += 8)
    n_bits += static_cast<std::size_t>(__builtin_popcountll(load<std::uint64_t>(bytes + i)));
  for (; i < count; ++i) n_bits += static_cast<std::size_t>(__builtin_popcount(bytes[i]));
  return n_bits;
}

std::size_t count_at_least(const float* x, std::size_t count, float least) {
  std::uint32_t reached = 0;
#pragma omp simd reduction(+ : reached)
  for (std::size_t i = 0; i < count; ++i) reached += __builtin_fabsf(x[i]) >= least ? 1u : 0u;
  return reached;
}

std::size_t find_at_least(const float* x, std::size_t count, float least, std::uint32_t* positions) {
  std::size_t found = 0, i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= count; i += 16) {
    const __m512 some = _mm512_abs_ps(_mm512_loadu_ps(x + i));
    for (std::uint32_t bits = _mm512_cmp_ps_mask(some, _mm512_set1_ps(least), _CMP_GE_OQ); bits != 0; bits &= bits - 1)
      positions[found++] = static_cast<std::uint32_t>(i) + static_cast<std::uint32_t>(__builtin_ctz(bits));
  }
#endif
  for (; i < count; ++i) {
    positions[found] = static_cast<std::uint32_t>(i);
    found += __builtin_fabsf(x[i]) >= least ? 1u : 0u;
  }
  return found;
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
    lowest = _mm512_min_epi32(lowest,
                              _mm512_mask_mov_epi32(none, _mm512_cmp_ps_mask(best[i], wanted, _CMP_EQ_OQ), where[i]));
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

#if defined(__AVX2__)
float horizontal_sum(__m256 x) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
#endif

float gather_dot(const std::uint16_t* latents, const std::int8_t* values, std::size_t k, const float* u) {
#if defined(__AVX512F__)
  __m512 sums = _mm512_setzero_ps();
  for (std::size_t i = 0; i < k; i += 16) {
    const auto some = static_cast<__mmask16>(k - i < 16 ? (1u << (k - i)) - 1 : 0xffff);
    const __m512i index = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, latents + i));
    const __m512i value = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(some, values + i));
    // A lane left out reads u[0] and counts it 0 times, which is cheaper than not to read it.
    sums = _mm512_fmadd_ps(_mm512_i32gather_ps(index, u, 4), _mm512_cvtepi32_ps(value), sums);
  }
  return _mm512_reduce_add_ps(sums);
#elif defined(__AVX2__)
  __m256 sums = _mm256_setzero_ps();
  std::size_t i = 0;
  for (; i + 8 <= k; i += 8) {
    const __m256i index = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(latents + i)));
    const __m256i value = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(values + i)));
    sums = _mm256_fmadd_ps(_mm256_i32gather_ps(u, index, 4), _mm256_cvtepi32_ps(value), sums);
  }
  float sum = horizontal_sum(sums);
  for (; i < k; ++i) sum += u[latents[i]] * static_cast<float>(values[i]);
  return sum;
#else
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (std::size_t i = 0; i < k; ++i) sum += u[latents[i]] * static_cast<float>(values[i]);
  return sum;
#endif
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

// One pair after the other: for instruction sets without a kernel of their own, for short rows and long ones.
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

// The kernels below take up to this many bits of high parts; rows of more go one pair after the other.
constexpr std::size_t kMaxHighBits = 1024;

#if defined(__AVX512F__)

// 16 numbers from the byte on where the first one begins.
__m512i sixteen(const PackedField& field, const std::uint8_t* bytes) {
#if defined(__AVX512VBMI__)
  const __m512i words = _mm512_permutexvar_epi8(_mm512_loadu_si512(field.permute), _mm512_loadu_si512(bytes));
#else
  const auto quarter = [&](std::size_t i) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + field.quarter_byte[i]));
  };
  __m512i quarters = _mm512_castsi128_si512(quarter(0));
  quarters = _mm512_inserti32x4(quarters, quarter(1), 1);
  quarters = _mm512_inserti32x4(quarters, quarter(2), 2);
  quarters = _mm512_inserti32x4(quarters, quarter(3), 3);
  const __m512i words = _mm512_shuffle_epi8(quarters, _mm512_loadu_si512(field.shuffle));
#endif
  const __m512i mask = _mm512_set1_epi32(static_cast<int>((1u << field.width) - 1));
  return _mm512_and_si512(_mm512_srlv_epi32(words, _mm512_loadu_si512(field.shift)), mask);
}

__m512i zero_to_fifteen() { return _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0); }

// Writes the positions of the set bits of the high parts and returns their number.
std::size_t set_bits(const PackedLayout& layout, const std::uint8_t* row, std::uint32_t* positions) {
  std::size_t count = 0;
  __m512i position = zero_to_fifteen();
  for (std::size_t w = 0; 64 * w < layout.high_bits; ++w) {
    std::uint64_t word = high_word(layout, row, w);
    for (std::size_t part = 0; part < 4; ++part, word >>= 16) {
      const auto some = static_cast<__mmask16>(word);
      _mm512_storeu_si512(positions + count, _mm512_maskz_compress_epi32(some, position));
      count += static_cast<std::size_t>(__builtin_popcount(some));
      position = _mm512_add_epi32(position, _mm512_set1_epi32(16));
    }
  }
  return count;
}

// Sum of u[latent] * level over a row's groups of 16; next_positions() gives those of each group's high bits.
template <typename NextPositions>
float sum_groups(const PackedLayout& layout, const std::uint8_t* row, const float* u,
                 const NextPositions& next_positions) {
  const std::uint8_t* low = row + layout.low.start / 8;
  const std::uint8_t* value = row + layout.value.start / 8;
  const __m128i low_width = _mm_cvtsi32_si128(static_cast<int>(layout.low.width));
  // Up to 6 bits, the levels fit two registers: of both signs, or for 6 bits the first half.
  const bool in_registers = layout.value.width <= 6;
  const __m512 first_levels = _mm512_loadu_ps(layout.levels), next_levels = _mm512_loadu_ps(layout.levels + 16);
  const __m512i sign = _mm512_set1_epi32(layout.value.width == 6 ? 1 << 5 : 0);
  const __m512i sixteen_bits = _mm512_set1_epi32(0xffff);
  __m512i number = zero_to_fifteen();
  __m256 sums = _mm256_setzero_ps();
  for (std::size_t i = 0; i < layout.k; i += 16) {
    const __m512i high = _mm512_sll_epi32(_mm512_sub_epi32(next_positions(i), number), low_width);
    // A damaged row's latent may be anything.
    const __m512i latent = _mm512_and_si512(_mm512_add_epi32(high, sixteen(layout.low, low)), sixteen_bits);
    const __m512i code = sixteen(layout.value, value);
    __m512 level;
    if (in_registers) {
      const __m512i flip = _mm512_slli_epi32(_mm512_and_si512(code, sign), 26);
      level = _mm512_castsi512_ps(
          _mm512_xor_si512(_mm512_castps_si512(_mm512_permutex2var_ps(first_levels, code, next_levels)), flip));
    } else {
      level = _mm512_i32gather_ps(code, layout.levels, 4);
    }
    if (layout.k - i < 16) level = _mm512_maskz_mov_ps(static_cast<__mmask16>((1u << (layout.k - i)) - 1), level);
    // By halves: after multiplications of 512 bits the processor runs slower for a while, postings and all.
    const __m512 entries = _mm512_i32gather_ps(latent, u, 4);
    sums = _mm256_fmadd_ps(_mm512_castps512_ps256(entries), _mm512_castps512_ps256(level), sums);
    sums = _mm256_fmadd_ps(_mm512_extractf32x8_ps(entries, 1), _mm512_extractf32x8_ps(level, 1), sums);
    number = _mm512_add_epi32(number, _mm512_set1_epi32(16));
    low += 2 * layout.low.width;
    value += 2 * layout.value.width;
  }
  return horizontal_sum(sums);
}

float packed_dot_fast(const PackedLayout& layout, const std::uint8_t* row, const float* u) {
#if defined(__AVX512VBMI2__)
  if (layout.high_bits <= 64) {
    const std::uint64_t word = high_word(layout, row, 0);
    if (static_cast<std::size_t>(__builtin_popcountll(word)) != layout.k) return 0.0f;
    alignas(64) static constexpr std::uint8_t kBytes[64] = {
        0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
        22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43,
        44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
    __m512i positions = _mm512_maskz_compress_epi8(word, _mm512_load_si512(kBytes));
    return sum_groups(layout, row, u, [&](std::size_t) {
      const __m512i group = _mm512_cvtepu8_epi32(_mm512_castsi512_si128(positions));
      positions = _mm512_alignr_epi64(positions, positions, 2);
      return group;
    });
  }
#endif
  std::uint32_t positions[kMaxHighBits + 16];
  if (set_bits(layout, row, positions) != layout.k) return 0.0f;
  return sum_groups(layout, row, u, [&](std::size_t i) { return _mm512_loadu_si512(positions + i); });
}

#elif defined(__AVX2__)

// 8 numbers from the byte on where the first one begins.
__m256i eight(const PackedField& field, const std::uint8_t* bytes) {
  const auto* first = reinterpret_cast<const __m128i*>(bytes + field.quarter_byte[0]);
  const auto* second = reinterpret_cast<const __m128i*>(bytes + field.quarter_byte[1]);
  const __m256i quarters = _mm256_set_m128i(_mm_loadu_si128(second), _mm_loadu_si128(first));
  const __m256i words =
      _mm256_shuffle_epi8(quarters, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(field.shuffle)));
  const __m256i shift = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(field.shift));
  const __m256i mask = _mm256_set1_epi32(static_cast<int>((1u << field.width) - 1));
  return _mm256_and_si256(_mm256_srlv_epi32(words, shift), mask);
}

float packed_dot_fast(const PackedLayout& layout, const std::uint8_t* row, const float* u) {
  std::uint32_t positions[kMaxHighBits + 8];
  std::size_t count = 0;
  for (std::size_t w = 0; 64 * w < layout.high_bits; ++w)
    for (std::uint64_t word = high_word(layout, row, w); word != 0; word &= word - 1)
      positions[count++] = static_cast<std::uint32_t>(64 * w) + static_cast<std::uint32_t>(__builtin_ctzll(word));
  if (count != layout.k) return 0.0f;
  const std::uint8_t* low = row + layout.low.start / 8;
  const std::uint8_t* value = row + layout.value.start / 8;
  const __m128i low_width = _mm_cvtsi32_si128(static_cast<int>(layout.low.width));
  const __m256i sixteen_bits = _mm256_set1_epi32(0xffff), lane = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
  __m256i number = lane;
  __m256 sums = _mm256_setzero_ps();
  for (std::size_t i = 0; i < layout.k; i += 8) {
    const __m256i position = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(positions + i));
    const __m256i high = _mm256_sll_epi32(_mm256_sub_epi32(position, number), low_width);
    // A damaged row's latent may be anything.
    const __m256i latent = _mm256_and_si256(_mm256_add_epi32(high, eight(layout.low, low)), sixteen_bits);
    __m256 level = _mm256_i32gather_ps(layout.levels, eight(layout.value, value), 4);
    if (layout.k - i < 8) {
      const __m256i some = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(layout.k - i)), lane);
      level = _mm256_and_ps(level, _mm256_castsi256_ps(some));
    }
    sums = _mm256_fmadd_ps(_mm256_i32gather_ps(u, latent, 4), level, sums);
    number = _mm256_add_epi32(number, _mm256_set1_epi32(8));
    low += layout.low.width;
    value += layout.value.width;
  }
  return horizontal_sum(sums);
}

#endif

void packed_dots(const PackedLayout& layout, const std::uint8_t* rows, std::size_t n_rows, const float* u,
                 float* scores) {
  for (std::size_t r = 0; r < n_rows; ++r) {
    const std::uint8_t* row = rows + r * layout.row_bytes;
#if defined(__AVX2__)
    const std::uint16_t scale = load<std::uint16_t>(row);
    if (!(scale & 0x8000) && layout.high_bits <= kMaxHighBits) {
      scores[r] = from_half(scale) * packed_dot_fast(layout, row, u);
      continue;
    }
#endif
    scores[r] = packed_dot(layout, row, u);
  }
}

// Blocks between the one in use and the one to fetch: many rows at once are more streams than the hardware follows.
constexpr std::size_t kBlocksAhead = 4;

// A block of y stays in registers while all rows pass by.
void add_byte_rows(const std::int8_t* const* rows, const float* weights, std::size_t n_rows, std::size_t count,
                   float* y) {
  for (std::size_t begin = 0; begin < count; begin += kBlock) {
#if defined(__AVX512F__)
    __m512 sums[4];
    for (std::size_t i = 0; i < 4; ++i) sums[i] = _mm512_loadu_ps(y + begin + 16 * i);
    for (std::size_t r = 0; r < n_rows; ++r) {
      const auto* row = reinterpret_cast<const __m128i*>(rows[r] + begin);
      __builtin_prefetch(rows[r] + begin + kBlocksAhead * kBlock);
      const __m512 weight = _mm512_set1_ps(weights[r]);
      for (std::size_t i = 0; i < 4; ++i) {
        const __m512i bytes = _mm512_cvtepi8_epi32(_mm_loadu_si128(row + i));
        sums[i] = _mm512_fmadd_ps(weight, _mm512_cvtepi32_ps(bytes), sums[i]);
      }
    }
    for (std::size_t i = 0; i < 4; ++i) _mm512_storeu_ps(y + begin + 16 * i, sums[i]);
#elif defined(__AVX2__)
    __m256 sums[8];
    for (std::size_t i = 0; i < 8; ++i) sums[i] = _mm256_loadu_ps(y + begin + 8 * i);
    for (std::size_t r = 0; r < n_rows; ++r) {
      const __m256 weight = _mm256_set1_ps(weights[r]);
      for (std::size_t i = 0; i < 8; ++i) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(rows[r] + begin + 8 * i));
        sums[i] = _mm256_fmadd_ps(weight, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), sums[i]);
      }
    }
    for (std::size_t i = 0; i < 8; ++i) _mm256_storeu_ps(y + begin + 8 * i, sums[i]);
#else
    for (std::size_t r = 0; r < n_rows; ++r) {
#pragma omp simd
      for (std::size_t i = 0; i < kBlock; ++i) y[begin + i] += weights[r] * static_cast<float>(rows[r][begin + i]);
    }
#endif
  }
}

#if defined(__AVX512BW__)
using Lanes = __m512i;
constexpr std::size_t kLaneVectors = 4;
Lanes repeated(std::int32_t entries) { return _mm512_set1_epi32(entries); }
[[maybe_unused]] Lanes add_pairs(Lanes sums, Lanes x, Lanes y) {
  return _mm512_add_epi32(sums, _mm512_madd_epi16(x, y));
}
#elif defined(__AVX2__)
using Lanes = __m256i;
constexpr std::size_t kLaneVectors = 2;
Lanes repeated(std::int32_t entries) { return _mm256_set1_epi32(entries); }
Lanes add_pairs(Lanes sums, Lanes x, Lanes y) { return _mm256_add_epi32(sums, _mm256_madd_epi16(x, y)); }
#endif

#if defined(__AVX2__)
// sums + the products of the kStep entries of each lane's row with those of a query.
Lanes add_to_lanes(Lanes sums, Lanes rows, std::int32_t query) {
#if defined(__AVX512VNNI__)
  return _mm512_dpbusd_epi32(sums, rows, repeated(query));
#else
  // The even bytes as words, then the odd ones.
  using Unsigned = std::uint16_t __attribute__((vector_size(sizeof(Lanes))));
  using Signed = std::int16_t __attribute__((vector_size(sizeof(Lanes))));
  const auto bytes = reinterpret_cast<Unsigned>(rows);
  const auto entries = reinterpret_cast<Signed>(repeated(query));
  sums = add_pairs(sums, reinterpret_cast<Lanes>(bytes & 0xff), reinterpret_cast<Lanes>(entries << 8 >> 8));
  return add_pairs(sums, reinterpret_cast<Lanes>(bytes >> 8), reinterpret_cast<Lanes>(entries >> 8));
#endif
}
#endif

// Bytes between the entries in use and those to fetch: rows are read at several places at once.
constexpr std::size_t kRowsAhead = 512;

// sums[p][i] = <plane p, row i> for the rows of a block, whose entries begin at `row`.
template <std::size_t Planes>
void block_sums(const std::uint8_t* row, const std::int8_t* plane, std::size_t steps, std::int32_t (*sums)[kBlock]) {
  constexpr std::size_t kStep = ProductRows::kStep;
#if defined(__AVX2__)
  constexpr std::size_t kWidth = sizeof(Lanes) / 4;
  for (std::size_t first = 0; first < kBlock; first += kLaneVectors * kWidth) {
    Lanes lanes[Planes][kLaneVectors] = {};
    for (std::size_t step = 0; step < steps; ++step) {
      Lanes rows[kLaneVectors];
#pragma GCC unroll 4
      for (std::size_t v = 0; v < kLaneVectors; ++v) {
        const std::size_t i = first + v * kWidth;
        const std::uint8_t* entries = row + ((i / 16 * steps + step) * 16 + i % 16) * kStep;
        __builtin_prefetch(entries + kRowsAhead);
        rows[v] = load<Lanes>(entries);
      }
#pragma GCC unroll 8
      for (std::size_t p = 0; p < Planes; ++p) {
        std::int32_t entries;
        __builtin_memcpy(&entries, plane + (p * steps + step) * kStep, sizeof entries);
#pragma GCC unroll 4
        for (std::size_t v = 0; v < kLaneVectors; ++v) lanes[p][v] = add_to_lanes(lanes[p][v], rows[v], entries);
      }
    }
    // One by one: copied as a whole, the sums would stand in memory from the start.
#pragma GCC unroll 8
    for (std::size_t p = 0; p < Planes; ++p)
#pragma GCC unroll 4
      for (std::size_t v = 0; v < kLaneVectors; ++v) {
        const Lanes lane = lanes[p][v];
        __builtin_memcpy(sums[p] + first + v * kWidth, &lane, sizeof lane);
      }
  }
#else
  for (std::size_t p = 0; p < Planes; ++p)
    for (std::size_t first = 0; first < kBlock; first += 16) {
      std::int32_t lanes[16] = {};
      for (std::size_t step = 0; step < steps; ++step) {
        const std::uint8_t* rows = row + (first / 16 * steps + step) * 16 * kStep;
        const std::int8_t* entries = plane + (p * steps + step) * kStep;
#pragma omp simd
        for (std::size_t i = 0; i < 16; ++i)
          for (std::size_t e = 0; e < kStep; ++e) lanes[i] += rows[kStep * i + e] * entries[e];
      }
      __builtin_memcpy(sums[p] + first, lanes, sizeof lanes);
    }
#endif
}

// Adds products of `Queries` queries from `first` on with the first n_rows rows of a block.
template <std::size_t Planes, std::size_t Queries>
void add_block_products(const ProductRows& rows, std::size_t block, std::size_t n_rows, const ProductQueries& queries,
                        std::size_t first, float* products, std::size_t stride) {
  const std::size_t length = ProductRows::kStep * rows.steps;
  alignas(64) std::int32_t sums[Queries * Planes][kBlock];
  block_sums<Queries * Planes>(rows.entries + block * kBlock * length, queries.entries + first * Planes * length,
                               rows.steps, sums);
  for (std::size_t q = 0; q < Queries; ++q) {
    float* columns = products + (first + q) * stride + block * kBlock;
    const float* scales = queries.scales + (first + q) * Planes;
    const std::int32_t* query_sums = queries.sums + (first + q) * Planes;
#pragma omp simd
    for (std::size_t i = 0; i < n_rows; ++i) {
      float product = 0.0f;
      for (std::size_t p = 0; p < Planes; ++p)
        product += static_cast<float>(sums[q * Planes + p][i] - ProductRows::kAdded * query_sums[p]) * scales[p];
      columns[i] += product * rows.scales[block * kBlock + i];
    }
  }
}

// A block of rows stays in the first-level cache while all queries pass by.
template <std::size_t Planes>
void add_products_of(const ProductRows& rows, std::size_t n_rows, const ProductQueries& queries, float* products,
                     std::size_t stride) {
  constexpr std::size_t kTile = 6 / Planes;
  for (std::size_t block = 0; block < rows.n_blocks; ++block) {
    const std::size_t left = n_rows - block * kBlock, count = left < kBlock ? left : kBlock;
    std::size_t q = 0;
    for (; q + kTile <= queries.n; q += kTile)
      add_block_products<Planes, kTile>(rows, block, count, queries, q, products, stride);
    for (; q < queries.n; ++q) add_block_products<Planes, 1>(rows, block, count, queries, q, products, stride);
  }
}

void add_products(const ProductRows& rows, std::size_t n_rows, const ProductQueries& queries, float* products,
                  std::size_t stride) {
  if (queries.n_planes == 1)
    add_products_of<1>(rows, n_rows, queries, products, stride);
  else
    add_products_of<3>(rows, n_rows, queries, products, stride);
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

#if defined(__AVX512F__)
// Each load serves several products, and the sums do not wait for each other.
template <std::size_t Rows, std::size_t Others>
void tile_dots(const float* const* rows, const float* const* others, std::size_t count, float* products,
               std::size_t stride) {
  __m512 sums[Rows][Others];
  for (std::size_t i = 0; i < Rows; ++i)
    for (std::size_t j = 0; j < Others; ++j) sums[i][j] = _mm512_setzero_ps();
  for (std::size_t at = 0; at < count; at += 16) {
    const auto some = static_cast<__mmask16>(count - at < 16 ? (1u << (count - at)) - 1 : 0xffff);
    __m512 other[Others];
    for (std::size_t j = 0; j < Others; ++j) other[j] = _mm512_maskz_loadu_ps(some, others[j] + at);
    for (std::size_t i = 0; i < Rows; ++i) {
      const __m512 row = _mm512_maskz_loadu_ps(some, rows[i] + at);
      for (std::size_t j = 0; j < Others; ++j) sums[i][j] = _mm512_fmadd_ps(row, other[j], sums[i][j]);
    }
  }
  for (std::size_t i = 0; i < Rows; ++i)
    for (std::size_t j = 0; j < Others; ++j) products[i * stride + j] = _mm512_reduce_add_ps(sums[i][j]);
}
#endif

void dots(const float* const* rows, std::size_t n_rows, const float* const* others, std::size_t n_others,
          std::size_t count, float* products, std::size_t stride) {
  std::size_t i = 0;
#if defined(__AVX512F__)
  for (; i + 4 <= n_rows; i += 4) {
    std::size_t j = 0;
    for (; j + 4 <= n_others; j += 4) tile_dots<4, 4>(rows + i, others + j, count, products + i * stride + j, stride);
    for (; j < n_others; ++j) tile_dots<4, 1>(rows + i, others + j, count, products + i * stride + j, stride);
  }
#endif
  for (; i < n_rows; ++i)
    for (std::size_t j = 0; j < n_others; ++j) products[i * stride + j] = dot(rows[i], others[j], count);
}

void add_rows(const float* rows, std::size_t stride, const float* weights, std::size_t n_rows, std::size_t count,
              float* y) {
  for (std::size_t begin = 0; begin < count; begin += kLanes) {
    float sums[4][kLanes] = {};
    std::size_t r = 0;
    // Four sums that do not wait for each other.
    for (; r + 4 <= n_rows; r += 4)
      for (std::size_t s = 0; s < 4; ++s) {
#pragma omp simd
        for (std::size_t i = 0; i < kLanes; ++i) sums[s][i] += weights[r + s] * rows[(r + s) * stride + begin + i];
      }
    for (; r < n_rows; ++r) {
#pragma omp simd
      for (std::size_t i = 0; i < kLanes; ++i) sums[0][i] += weights[r] * rows[r * stride + begin + i];
    }
#pragma omp simd
    for (std::size_t i = 0; i < kLanes; ++i) y[begin + i] += (sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i]);
  }
}

}  // namespace

extern const Kernels COMPRESSAE_KERNELS{accumulate,     group_maxima,  count_above, harvest,    count_bits,
                                        count_at_least, find_at_least, arg_max_abs, gather_dot, packed_dots,
                                        add_products,   add_byte_rows, dot,         dots,       add_rows};

}  // namespace compressae
