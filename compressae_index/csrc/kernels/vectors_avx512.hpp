// The vocabulary of vectors.hpp in AVX-512 F, BW, DQ and VL.
#pragma once

#include "kernels/vectors_x86.hpp"

namespace compressae {
namespace {

inline Int16s repeated(std::int16_t x) { return reinterpret_cast<Int16s>(_mm512_set1_epi16(x)); }
inline Int32s repeated(std::int32_t x) { return reinterpret_cast<Int32s>(_mm512_set1_epi32(x)); }
inline Floats repeated(float x) { return _mm512_set1_ps(x); }

inline Int16s larger(Int16s x, Int16s y) { return reinterpret_cast<Int16s>(_mm512_max_epi16(raw(x), raw(y))); }

inline std::uint32_t bits_above(const Int16s* x, std::int16_t threshold) {
  return _mm512_cmpgt_epi16_mask(raw(*x), raw(repeated(threshold)));
}

inline bool any_above(Int16s x, std::int16_t threshold) { return bits_above(&x, threshold) != 0; }

inline Int16s upper_bytes(const std::int8_t* bytes) {
  return reinterpret_cast<Int16s>(_mm512_slli_epi16(_mm512_cvtepi8_epi16(load<__m256i>(bytes)), 8));
}

inline Int16s multiply_rounded(Int16s x, Int16s y) {
  return reinterpret_cast<Int16s>(_mm512_mulhrs_epi16(raw(x), raw(y)));
}

// Transposed while it is added: four sums at the price of one and a half.
inline void sums_of_four(const Int32s* x, std::int32_t* sums) {
  const auto pairs = [](Raw a, Raw b) {
    return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  };
  const Raw two = pairs(raw(x[0]), raw(x[1])), others = pairs(raw(x[2]), raw(x[3]));
  const Raw all = _mm512_add_epi32(_mm512_unpacklo_epi64(two, others), _mm512_unpackhi_epi64(two, others));
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
  store(sums, _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
}

inline void interleave_bytes(Int32s* x) {
  const Raw two = _mm512_unpacklo_epi8(raw(x[0]), raw(x[1])), two_more = _mm512_unpackhi_epi8(raw(x[0]), raw(x[1]));
  const Raw others = _mm512_unpacklo_epi8(raw(x[2]), raw(x[3])), more = _mm512_unpackhi_epi8(raw(x[2]), raw(x[3]));
  x[0] = reinterpret_cast<Int32s>(_mm512_unpacklo_epi16(two, others));
  x[1] = reinterpret_cast<Int32s>(_mm512_unpackhi_epi16(two, others));
  x[2] = reinterpret_cast<Int32s>(_mm512_unpacklo_epi16(two_more, more));
  x[3] = reinterpret_cast<Int32s>(_mm512_unpackhi_epi16(two_more, more));
}

inline Floats floats_of(const std::int8_t* bytes) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load<__m128i>(bytes)));
}

inline Floats multiply_add(Floats x, Floats y, Floats sums) { return _mm512_fmadd_ps(x, y, sums); }

inline Floats8 add_by_eights(Floats x, Floats y, Floats8 sums) {
  sums = _mm256_fmadd_ps(_mm512_castps512_ps256(x), _mm512_castps512_ps256(y), sums);
  return _mm256_fmadd_ps(_mm512_extractf32x8_ps(x, 1), _mm512_extractf32x8_ps(y, 1), sums);
}

inline float sum_of(Floats x) { return _mm512_reduce_add_ps(x); }

inline Uint32s zero_upwards() { return Uint32s{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }

inline Uint32s shift_left(Uint32s x, std::size_t n) {
  return reinterpret_cast<Uint32s>(_mm512_sll_epi32(raw(x), _mm_cvtsi32_si128(static_cast<int>(n))));
}

inline Floats gather(const float* table, Uint32s index) { return _mm512_i32gather_ps(raw(index), table, 4); }

// The first n lanes, of all where n is more.
inline __mmask16 first_lanes(std::size_t n) { return static_cast<__mmask16>(n < 16 ? (1u << n) - 1 : 0xffff); }

inline Floats keep_first(Floats x, std::size_t n) { return _mm512_maskz_mov_ps(first_lanes(n), x); }
inline Floats load_first(const float* from, std::size_t n) { return _mm512_maskz_loadu_ps(first_lanes(n), from); }

}  // namespace
}  // namespace compressae
