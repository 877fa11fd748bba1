// Products of residual codes with a query of bytes, and half-precision rows as floats.
#pragma once

#include "base/half.hpp"
#include "kernels/byte_products.hpp"
#include "kernels/kernels.hpp"
#include "kernels/vectors.hpp"

namespace compressae {
namespace {

namespace plain {

// Number `lane` of a group in a plane of `width` bits: byte lane % (2 * width), above its first lane / (2 * width)
// fields. So whole bytes are taken apart by shifts, and neighbouring lanes are neighbouring bytes. A plane of bits
// keeps them in order.
inline std::uint32_t field_at(const std::uint8_t* group, std::size_t width, std::size_t lane) {
  if (width == 1) return group[lane / 8] >> lane % 8 & 1u;
  const std::size_t bytes = 2 * width;
  return group[lane % bytes] >> lane / bytes * width & ((1u << width) - 1);
}

inline std::int32_t residual_dot(const ResidualLayout& layout, const std::uint8_t* row, const std::int8_t* query) {
  std::int32_t sum = 0;
  for (std::size_t g = 0; g < layout.n_groups; ++g)
    for (std::size_t lane = 0; lane < ResidualLayout::kGroupDims; ++lane) {
      std::uint32_t number = field_at(row + layout.high_start + 2 * layout.high_bits * g, layout.high_bits, lane)
                             << layout.low_bits;
      if (layout.low_bits != 0)
        number |= field_at(row + layout.low_start + 2 * layout.low_bits * g, layout.low_bits, lane);
      sum += (layout.levels[number] - ProductRows::kAdded) * query[g * ResidualLayout::kGroupDims + lane];
    }
  return sum;
}

}  // namespace plain

#if !defined(COMPRESSAE_PLAIN)

// Each instruction set has vectors of kStepGroups groups, a byte a dimension: fields of the planes, at `from`, which
// may be read 32 bytes far, and levels looked up.
#if defined(__AVX512BW__)

using Bytes = __m512i;
constexpr std::size_t kStepGroups = 4;

template <std::size_t Width>
Bytes fields(const std::uint8_t* from) {
  if constexpr (Width == 4) {
    // A group's 8 bytes twice, of which the second is moved down.
    const __m512i twice = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3),
                                                   _mm512_castsi256_si512(load<__m256i>(from)));
    const __m512i moved = _mm512_srlv_epi64(twice, _mm512_setr_epi64(0, 4, 0, 4, 0, 4, 0, 4));
    return _mm512_and_si512(moved, _mm512_set1_epi8(15));
  } else if constexpr (Width == 2) {
    const __m512i places = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const __m512i four = _mm512_permutexvar_epi32(places, _mm512_castsi128_si512(load<__m128i>(from)));
    const __m512i moved = _mm512_srlv_epi32(four, _mm512_setr4_epi32(0, 2, 4, 6));
    return _mm512_and_si512(moved, _mm512_set1_epi8(3));
  } else {
    return _mm512_maskz_set1_epi8(load<std::uint64_t>(from), 1);
  }
}

inline Bytes above(Bytes high, Bytes low, std::size_t low_bits) {
  return _mm512_or_si512(_mm512_sll_epi16(high, _mm_cvtsi64_si128(static_cast<long long>(low_bits))), low);
}

inline Bytes looked_up(const std::uint8_t* table, Bytes numbers) {
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(load<__m128i>(table)), numbers);
}

inline Bytes looked_up_of_64(const std::uint8_t* table, Bytes numbers) {
#if defined(__AVX512VBMI__)
  return _mm512_permutexvar_epi8(numbers, load<__m512i>(table));
#else
  Bytes found = looked_up(table, numbers);
  for (std::size_t part = 1; part < 4; ++part) {
    const __mmask64 here = _mm512_cmpge_epu8_mask(numbers, _mm512_set1_epi8(static_cast<char>(16 * part)));
    found = _mm512_mask_mov_epi8(found, here, looked_up(table + 16 * part, numbers));
  }
  return found;
#endif
}

inline Int32s as_lanes(Bytes x) { return reinterpret_cast<Int32s>(x); }

inline std::int32_t sum_of(Int32s x) { return _mm512_reduce_add_epi32(raw(x)); }

#elif defined(__AVX2__)

using Bytes = __m256i;
constexpr std::size_t kStepGroups = 2;

template <std::size_t Width>
Bytes fields(const std::uint8_t* from) {
  if constexpr (Width == 4) {
    const __m256i twice = _mm256_permute4x64_epi64(_mm256_castsi128_si256(load<__m128i>(from)), 0x50);
    return _mm256_and_si256(_mm256_srlv_epi64(twice, _mm256_setr_epi64x(0, 4, 0, 4)), _mm256_set1_epi8(15));
  } else if constexpr (Width == 2) {
    const __m256i eight = _mm256_castsi128_si256(_mm_cvtsi64_si128(load<long long>(from)));
    const __m256i four = _mm256_permutevar8x32_epi32(eight, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
    const __m256i moved = _mm256_srlv_epi32(four, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
    return _mm256_and_si256(moved, _mm256_set1_epi8(3));
  } else {
    const __m256i all = _mm256_set1_epi32(load<std::int32_t>(from));
    const __m256i bytes =
        _mm256_shuffle_epi8(all, _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303));
    const __m256i bits = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201));
    const __m256i is_set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bits), bits);
    return _mm256_and_si256(is_set, _mm256_set1_epi8(1));
  }
}

inline Bytes above(Bytes high, Bytes low, std::size_t low_bits) {
  return _mm256_or_si256(_mm256_sll_epi16(high, _mm_cvtsi64_si128(static_cast<long long>(low_bits))), low);
}

inline Bytes looked_up(const std::uint8_t* table, Bytes numbers) {
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load<__m128i>(table)), numbers);
}

inline Bytes looked_up_of_64(const std::uint8_t* table, Bytes numbers) {
  Bytes found = looked_up(table, numbers);
  for (std::size_t part = 1; part < 4; ++part) {
    const Bytes here = _mm256_cmpgt_epi8(numbers, _mm256_set1_epi8(static_cast<char>(16 * part - 1)));
    found = _mm256_blendv_epi8(found, looked_up(table + 16 * part, numbers), here);
  }
  return found;
}

inline Int32s as_lanes(Bytes x) { return reinterpret_cast<Int32s>(x); }

inline std::int32_t sum_of(Int32s x) {
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(raw(x)), _mm256_extracti128_si256(raw(x), 1));
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}

#else

using Bytes = uint8x16_t;
constexpr std::size_t kStepGroups = 1;

template <std::size_t Width>
Bytes fields(const std::uint8_t* from) {
  if constexpr (Width == 4) {
    const uint8x8_t both = vld1_u8(from);
    return vcombine_u8(vand_u8(both, vdup_n_u8(15)), vshr_n_u8(both, 4));
  } else if constexpr (Width == 2) {
    const int32x4_t down = {0, -2, -4, -6};
    const uint32x4_t moved = vshlq_u32(vdupq_n_u32(load<std::uint32_t>(from)), down);
    return vandq_u8(vreinterpretq_u8_u32(moved), vdupq_n_u8(3));
  } else {
    const uint8x16_t bits = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x16_t bytes = vcombine_u8(vdup_n_u8(from[0]), vdup_n_u8(from[1]));
    return vandq_u8(vtstq_u8(bytes, bits), vdupq_n_u8(1));
  }
}

inline Bytes above(Bytes high, Bytes low, std::size_t low_bits) {
  return vorrq_u8(vshlq_u8(high, vdupq_n_s8(static_cast<std::int8_t>(low_bits))), low);
}

inline Bytes looked_up(const std::uint8_t* table, Bytes numbers) { return vqtbl1q_u8(vld1q_u8(table), numbers); }
inline Bytes looked_up_of_64(const std::uint8_t* table, Bytes numbers) {
  return vqtbl4q_u8(vld1q_u8_x4(table), numbers);
}

inline Int32s as_lanes(Bytes x) { return vreinterpretq_s32_u8(x); }

inline std::int32_t sum_of(Int32s x) { return vaddvq_s32(x); }

#endif

template <std::size_t High, std::size_t Low>
std::int32_t residual_dot(const ResidualLayout& layout, const std::uint8_t* row, const std::int8_t* query) {
  const std::uint8_t* high = row + layout.high_start;
  const std::uint8_t* low = row + layout.low_start;
  Int32s sums{};
  for (std::size_t g = 0; g < layout.n_groups; g += kStepGroups) {
    Bytes numbers = fields<High>(high + 2 * High * g);
    if constexpr (Low != 0) numbers = above(numbers, fields<Low>(low + 2 * Low * g), Low);
    const Bytes levels = High + Low > 4 ? looked_up_of_64(layout.levels, numbers) : looked_up(layout.levels, numbers);
    sums = add_step(sums, as_lanes(levels), load<Int32s>(query + ResidualLayout::kGroupDims * g));
  }
  return sum_of(sums);
}

template <std::size_t High, std::size_t Low>
void residual_dots_of(const ResidualLayout& layout, const std::uint8_t* rows, std::size_t n_rows,
                      const std::int8_t* query, std::int32_t* sums) {
  const std::int32_t added = surplus(query, layout.n_groups * ResidualLayout::kGroupDims);
  for (std::size_t r = 0; r < n_rows; ++r)
    sums[r] = residual_dot<High, Low>(layout, rows + r * layout.row_bytes, query) - added;
}

#endif

void residual_dots(const ResidualLayout& layout, const std::uint8_t* rows, std::size_t n_rows, const std::int8_t* query,
                   std::int32_t* sums) {
#if defined(COMPRESSAE_PLAIN)
  for (std::size_t r = 0; r < n_rows; ++r) sums[r] = plain::residual_dot(layout, rows + r * layout.row_bytes, query);
#else
  if (layout.low_bits == 1)
    residual_dots_of<2, 1>(layout, rows, n_rows, query, sums);
  else if (layout.low_bits == 2)
    residual_dots_of<4, 2>(layout, rows, n_rows, query, sums);
  else if (layout.high_bits == 1)
    residual_dots_of<1, 0>(layout, rows, n_rows, query, sums);
  else if (layout.high_bits == 2)
    residual_dots_of<2, 0>(layout, rows, n_rows, query, sums);
  else
    residual_dots_of<4, 0>(layout, rows, n_rows, query, sums);
#endif
}

void widen(const std::uint16_t* halves, std::size_t count, float* floats) {
  std::size_t i = 0;
#if defined(__AVX512BW__)
  for (; i + 16 <= count; i += 16) store(floats + i, _mm512_cvtph_ps(load<__m256i>(halves + i)));
#elif defined(__AVX2__)
  for (; i + 8 <= count; i += 8) store(floats + i, _mm256_cvtph_ps(load<__m128i>(halves + i)));
#elif defined(COMPRESSAE_NEON)
  for (; i + 4 <= count; i += 4) vst1q_f32(floats + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves + i))));
#endif
  for (; i < count; ++i) floats[i] = from_half(halves[i]);
}

}  // namespace
}  // namespace compressae
