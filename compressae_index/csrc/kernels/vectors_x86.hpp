// Shared by AVX2 and AVX-512: vectors of kVectorBytes, and those of 8 lanes.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace compressae {
namespace {

#if defined(__AVX512BW__)
constexpr std::size_t kVectorBytes = 64;
using Raw = __m512i;  // integers as Intel's functions take them
#else
constexpr std::size_t kVectorBytes = 32;
using Raw = __m256i;
#endif

using Int16s = std::int16_t __attribute__((vector_size(kVectorBytes)));
using Int32s = std::int32_t __attribute__((vector_size(kVectorBytes)));
using Uint32s = std::uint32_t __attribute__((vector_size(kVectorBytes)));
using Floats = float __attribute__((vector_size(kVectorBytes)));
using Floats8 = float __attribute__((vector_size(32)));
using EightInt16s = std::int16_t __attribute__((vector_size(16)));

template <typename V>
Raw raw(V x) {
  return reinterpret_cast<Raw>(x);
}

inline EightInt16s upper_bytes(std::uint64_t eight_bytes) {
  const __m128i widened = _mm_cvtepi8_epi16(_mm_cvtsi64_si128(static_cast<long long>(eight_bytes)));
  return reinterpret_cast<EightInt16s>(_mm_slli_epi16(widened, 8));
}

inline EightInt16s multiply_rounded(EightInt16s x, EightInt16s y) {
  return reinterpret_cast<EightInt16s>(_mm_mulhrs_epi16(reinterpret_cast<__m128i>(x), reinterpret_cast<__m128i>(y)));
}

inline float sum_of(Floats8 x) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

}  // namespace
}  // namespace compressae
