// The vocabulary of vectors.hpp in AVX2, FMA and F16C.
#pragma once

#include "kernels/vectors_x86.hpp"

namespace compressae {
namespace {

inline Int16s repeated(std::int16_t x) { return reinterpret_cast<Int16s>(_mm256_set1_epi16(x)); }
inline Int32s repeated(std::int32_t x) { return reinterpret_cast<Int32s>(_mm256_set1_epi32(x)); }
inline Floats repeated(float x) { return _mm256_set1_ps(x); }

inline Int16s larger(Int16s x, Int16s y) { return reinterpret_cast<Int16s>(_mm256_max_epi16(raw(x), raw(y))); }

inline bool any_above(Int16s x, std::int16_t threshold) {
  const Raw above = _mm256_cmpgt_epi16(raw(x), raw(repeated(threshold)));
  return !_mm256_testz_si256(above, above);
}

inline std::uint32_t bits_above(const Int16s* x, std::int16_t threshold) {
  const Raw bound = raw(repeated(threshold));
  const Raw lower = _mm256_cmpgt_epi16(raw(x[0]), bound), upper = _mm256_cmpgt_epi16(raw(x[1]), bound);
  // Packing goes by halves of a register: the order is put right.
  const Raw both = _mm256_permute4x64_epi64(_mm256_packs_epi16(lower, upper), 0xd8);
  return static_cast<std::uint32_t>(_mm256_movemask_epi8(both));
}

inline Int16s upper_bytes(const std::int8_t* bytes) {
  return reinterpret_cast<Int16s>(_mm256_slli_epi16(_mm256_cvtepi8_epi16(load<__m128i>(bytes)), 8));
}

inline Int16s multiply_rounded(Int16s x, Int16s y) {
  return reinterpret_cast<Int16s>(_mm256_mulhrs_epi16(raw(x), raw(y)));
}

// Transposed while it is added: four sums at the price of one and a half.
inline void sums_of_four(const Int32s* x, std::int32_t* sums) {
  const auto pairs = [](Raw a, Raw b) {
    return _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
  };
  const Raw two = pairs(raw(x[0]), raw(x[1])), others = pairs(raw(x[2]), raw(x[3]));
  const Raw all = _mm256_add_epi32(_mm256_unpacklo_epi64(two, others), _mm256_unpackhi_epi64(two, others));
  const __m256i half = all;
  store(sums, _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
}

inline void interleave_bytes(Int32s* x) {
  const Raw two = _mm256_unpacklo_epi8(raw(x[0]), raw(x[1])), two_more = _mm256_unpackhi_epi8(raw(x[0]), raw(x[1]));
  const Raw others = _mm256_unpacklo_epi8(raw(x[2]), raw(x[3])), more = _mm256_unpackhi_epi8(raw(x[2]), raw(x[3]));
  x[0] = reinterpret_cast<Int32s>(_mm256_unpacklo_epi16(two, others));
  x[1] = reinterpret_cast<Int32s>(_mm256_unpackhi_epi16(two, others));
  x[2] = reinterpret_cast<Int32s>(_mm256_unpacklo_epi16(two_more, more));
  x[3] = reinterpret_cast<Int32s>(_mm256_unpackhi_epi16(two_more, more));
}

inline Floats floats_of(const std::int8_t* bytes) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes))));
}

inline Floats multiply_add(Floats x, Floats y, Floats sums) { return _mm256_fmadd_ps(x, y, sums); }
inline Floats8 add_by_eights(Floats x, Floats y, Floats8 sums) { return multiply_add(x, y, sums); }

inline Uint32s zero_upwards() { return Uint32s{0, 1, 2, 3, 4, 5, 6, 7}; }

inline Uint32s widened(const std::uint16_t* numbers) {
  return reinterpret_cast<Uint32s>(_mm256_cvtepu16_epi32(load<__m128i>(numbers)));
}

inline Uint32s shift_left(Uint32s x, std::size_t n) { return x << static_cast<std::uint32_t>(n); }

inline Floats gather(const float* table, Uint32s index) { return _mm256_i32gather_ps(table, raw(index), 4); }

// The first n lanes, all bits of them.
inline Raw first_lanes(std::size_t n) {
  return _mm256_cmpgt_epi32(raw(repeated(static_cast<std::int32_t>(n))), raw(zero_upwards()));
}

inline Floats keep_first(Floats x, std::size_t n) { return _mm256_and_ps(x, _mm256_castsi256_ps(first_lanes(n))); }
inline Floats load_first(const float* from, std::size_t n) { return _mm256_maskload_ps(from, first_lanes(n)); }

}  // namespace
}  // namespace compressae
