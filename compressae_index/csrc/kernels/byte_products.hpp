// Four products of bytes in each lane, as products.hpp and residual_dots.hpp add them up.
//
// Rows' bytes are kAdded more than their entries, a query's are signed. Instructions multiply unsigned bytes with
// signed ones, so what they add up exceeds the product of the entries with the query by the query's surplus.
#pragma once

#include "kernels/kernels.hpp"
#include "kernels/vectors.hpp"

namespace compressae {
namespace {

#if defined(COMPRESSAE_PLAIN) || defined(__AVX512VNNI__)
constexpr std::int32_t surplus_of(std::int8_t entry) { return ProductRows::kAdded * entry; }
#elif defined(COMPRESSAE_NEON)
constexpr std::int32_t surplus_of(std::int8_t) { return 0; }
#else
constexpr std::int32_t surplus_of(std::int8_t entry) { return entry < 0 ? entry : 0; }
#endif

std::int32_t surplus(const std::int8_t* query, std::size_t count) {
  std::int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::size_t i = 0; i < count; ++i) sum += surplus_of(query[i]);
  return sum;
}

#if defined(__AVX512VNNI__)

// sums + the products of the 4 bytes of each lane.
inline Int32s add_step(Int32s sums, Int32s rows, Int32s query) {
  return reinterpret_cast<Int32s>(_mm512_dpbusd_epi32(raw(sums), raw(rows), raw(query)));
}

#elif defined(COMPRESSAE_NEON)

inline Int32s add_step(Int32s sums, Int32s rows, Int32s query) {
  const int8x16_t x = vreinterpretq_s8_u8(veorq_u8(vreinterpretq_u8_s32(rows), vdupq_n_u8(ProductRows::kAdded)));
  const int8x16_t y = vreinterpretq_s8_s32(query);
  const int16x8_t low = vmull_s8(vget_low_s8(x), vget_low_s8(y)), high = vmull_high_s8(x, y);
  return sums + vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
}

#elif !defined(COMPRESSAE_PLAIN)

// Sums of two products are cut off at 16 bits, which those of an entry x and a magnitude |y| never reach. Where y is
// negative, all bits of x are flipped: (-x - 1) |y| = x y + y.
inline Int32s add_step(Int32s sums, Int32s rows, Int32s query) {
  const Raw y = raw(query);
#if defined(__AVX512BW__)
  const Raw flipped = _mm512_xor_si512(_mm512_movm_epi8(_mm512_movepi8_mask(y)), _mm512_set1_epi8(-128));
  const Raw pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(y), _mm512_xor_si512(raw(rows), flipped));
  return sums + reinterpret_cast<Int32s>(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#else
  const Raw flipped = _mm256_xor_si256(_mm256_cmpgt_epi8(_mm256_setzero_si256(), y), _mm256_set1_epi8(-128));
  const Raw pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(y), _mm256_xor_si256(raw(rows), flipped));
  return sums + reinterpret_cast<Int32s>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
}

#endif

}  // namespace
}  // namespace compressae
