// Inner products of a dense vector u with codes: aligned ones, and rows of packed ones, which codes/packed.hpp
// describes.
#pragma once

#include "base/half.hpp"
#include "kernels/kernels.hpp"
#include "kernels/vectors.hpp"

namespace compressae {
namespace {

namespace plain {

inline float gather_dot(const std::uint16_t* latents, const std::int8_t* values, std::size_t k, const float* u) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (std::size_t i = 0; i < k; ++i) sum += u[latents[i]] * static_cast<float>(values[i]);
  return sum;
}

}  // namespace plain

#if defined(__AVX512BW__)

float gather_dot(const std::uint16_t* latents, const std::int8_t* values, std::size_t k, const float* u) {
  Floats sums{};
  for (std::size_t i = 0; i < k; i += kFloats) {
    const __mmask16 some = first_lanes(k - i);
    const __m512i index = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, latents + i));
    const __m512i value = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(some, values + i));
    // A lane left out reads u[0] and counts it 0 times, which is cheaper than not to read it.
    sums = multiply_add(_mm512_i32gather_ps(index, u, 4), _mm512_cvtepi32_ps(value), sums);
  }
  return sum_of(sums);
}

#elif defined(COMPRESSAE_PLAIN)
using plain::gather_dot;
#else

float gather_dot(const std::uint16_t* latents, const std::int8_t* values, std::size_t k, const float* u) {
  Floats sums{};
  std::size_t i = 0;
  for (; i + kFloats <= k; i += kFloats)
    sums = multiply_add(gather(u, widened(latents + i)), floats_of(values + i), sums);
  float sum = sum_of(sums);
  for (; i < k; ++i) sum += u[latents[i]] * static_cast<float>(values[i]);
  return sum;
}

#endif

// Word w of the high parts, without what follows them.
inline std::uint64_t high_word(const PackedLayout& layout, const std::uint8_t* row, std::size_t w) {
  const auto word = load<std::uint64_t>(row + 2 + 8 * w);
  const std::size_t bits = layout.high_bits - 64 * w;
  return bits < 64 ? word & ((std::uint64_t{1} << bits) - 1) : word;
}

namespace plain {

inline std::uint32_t number(const PackedField& field, const std::uint8_t* row, std::size_t i) {
  const std::size_t bit = field.start + i * field.width;
  return load<std::uint32_t>(row + bit / 8) >> bit % 8 & ((1u << field.width) - 1);
}

// One pair after the other. Vector kernels leave short rows and long ones to it.
//
// Latents ascend, and bit (latent[i] >> l) + i of the high parts is set (Elias-Fano): the i-th set bit, at position p,
// says that the high part of latent[i] is p - i.
float packed_dot(const PackedLayout& layout, const std::uint8_t* row, const float* u) {
  const auto scale = load<std::uint16_t>(row);
  const std::uint32_t index_mask = (1u << (layout.value.width - 1)) - 1;
  const bool is_short = scale & 0x8000;
  float sum = 0.0f;
  std::size_t i = 0;
  for (std::size_t w = 0; 64 * w < layout.high_bits; ++w) {
    for (std::uint64_t word = high_word(layout, row, w); word != 0; word &= word - 1, ++i) {
      if (i == layout.k) return 0.0f;
      const std::size_t high = 64 * w + static_cast<std::size_t>(__builtin_ctzll(word)) - i;
      const std::size_t latent = (high << layout.low.width) + number(layout.low, row, i);
      const std::uint32_t level = number(layout.value, row, i);
      if (is_short && (level & index_mask) == 0) continue;
      sum += u[latent & 0xffff] * layout.levels[level];
    }
  }
  return i == layout.k ? sum * from_half(scale & 0x7fff) : 0.0f;
}

}  // namespace plain

#if !defined(COMPRESSAE_PLAIN)

// Longer rows go one pair after the other.
constexpr std::size_t kMaxHighBits = 1024;

// The four bytes that hold each of kFloats numbers, from the byte on where the first number begins. A number of at most
// 16 bits begins within the first of its bytes, and so ends within the third: shifted and masked, they are the number.
inline Uint32s bytes_of_each(const PackedField& field, const std::uint8_t* bytes) {
#if defined(__AVX512VBMI__)
  return reinterpret_cast<Uint32s>(_mm512_permutexvar_epi8(load<__m512i>(field.permute), load<__m512i>(bytes)));
#else
  // Bytes are picked within 16, which is what four numbers lie in.
  const auto quarter = [&](std::size_t i) { return bytes + field.quarter_byte[i]; };
#if defined(__AVX512BW__)
  __m512i quarters = _mm512_castsi128_si512(load<__m128i>(quarter(0)));
  quarters = _mm512_inserti32x4(quarters, load<__m128i>(quarter(1)), 1);
  quarters = _mm512_inserti32x4(quarters, load<__m128i>(quarter(2)), 2);
  quarters = _mm512_inserti32x4(quarters, load<__m128i>(quarter(3)), 3);
  return reinterpret_cast<Uint32s>(_mm512_shuffle_epi8(quarters, load<__m512i>(field.shuffle)));
#elif defined(__AVX2__)
  const __m256i quarters = _mm256_set_m128i(load<__m128i>(quarter(1)), load<__m128i>(quarter(0)));
  return reinterpret_cast<Uint32s>(_mm256_shuffle_epi8(quarters, load<__m256i>(field.shuffle)));
#else
  const auto four = [&](std::size_t i) {
    return vreinterpretq_u32_u8(vqtbl1q_u8(vld1q_u8(quarter(i)), vld1q_u8(field.shuffle + 16 * i)));
  };
  return {four(0), four(1)};
#endif
#endif
}

inline Uint32s numbers(const PackedField& field, const std::uint8_t* bytes) {
  return bytes_of_each(field, bytes) >> load<Uint32s>(field.shift) & ((1u << field.width) - 1);
}

#if defined(__AVX512BW__)

// Up to 6 bits, the levels fit two registers: of both signs, or for 6 bits the positive half, whose sign is flipped by
// the upper bit of the level's index.
class Levels {
 public:
  explicit Levels(const PackedLayout& layout)
      : in_registers_(layout.value.width <= 6),
        sign_(Uint32s{} + (layout.value.width == 6 ? 1u << 5 : 0)),
        first_(load<Floats>(layout.levels)),
        next_(load<Floats>(layout.levels + 16)),
        layout_(layout) {}

  Floats at(Uint32s index) const {
    if (__builtin_expect(in_registers_, true)) {
      const Uint32s level = reinterpret_cast<Uint32s>(_mm512_permutex2var_ps(first_, raw(index), next_));
      return reinterpret_cast<Floats>(level ^ (index & sign_) << 26);
    }
    return gather(layout_.levels, index);
  }

 private:
  bool in_registers_;
  Uint32s sign_;
  Floats first_, next_;
  const PackedLayout& layout_;
};

#else

class Levels {
 public:
  explicit Levels(const PackedLayout& layout) : all_(layout.levels) {}
  Floats at(Uint32s index) const { return gather(all_, index); }

 private:
  const float* all_;
};

#endif

// Sum of u[latent] * level over a row's groups of kFloats; next_positions(i) gives those of the set high bits from the
// i-th on, as plain::packed_dot explains them.
template <typename NextPositions>
float sum_groups(const PackedLayout& layout, const std::uint8_t* row, const float* u,
                 const NextPositions& next_positions) {
  const std::uint8_t* low = row + layout.low.start / 8;
  const std::uint8_t* value = row + layout.value.start / 8;
  const Levels levels(layout);
  Uint32s number = zero_upwards();
  Floats8 sums{};
  for (std::size_t i = 0; i < layout.k; i += kFloats) {
    const Uint32s high = shift_left(next_positions(i) - number, layout.low.width);
    // A damaged row's latent may be anything.
    const Uint32s latent = (high + numbers(layout.low, low)) & 0xffff;
    Floats level = levels.at(numbers(layout.value, value));
    if (layout.k - i < kFloats) level = keep_first(level, layout.k - i);
    // By eights: after multiplications of 512 bits the processor runs slower for a while, postings and all.
    sums = add_by_eights(gather(u, latent), level, sums);
    number = number + static_cast<std::uint32_t>(kFloats);
    low += kFloats / 8 * layout.low.width;
    value += kFloats / 8 * layout.value.width;
  }
  return sum_of(sums);
}

// Writes the positions of the set bits of the high parts and returns their number.
inline std::size_t set_bits(const PackedLayout& layout, const std::uint8_t* row, std::uint32_t* positions) {
  std::size_t count = 0;
#if defined(__AVX512BW__)
  // Compress and store, as in harvest.hpp: the positions that a mask names move together.
  Uint32s position = zero_upwards();
  for (std::size_t w = 0; 64 * w < layout.high_bits; ++w) {
    std::uint64_t word = high_word(layout, row, w);
    for (std::size_t part = 0; part < 4; ++part, word >>= 16) {
      const auto some = static_cast<__mmask16>(word);
      store(positions + count, _mm512_maskz_compress_epi32(some, raw(position)));
      count += static_cast<std::size_t>(__builtin_popcount(some));
      position += 16;
    }
  }
#else
  for (std::size_t w = 0; 64 * w < layout.high_bits; ++w)
    for (std::uint64_t word = high_word(layout, row, w); word != 0; word &= word - 1)
      positions[count++] = static_cast<std::uint32_t>(64 * w) + static_cast<std::uint32_t>(__builtin_ctzll(word));
#endif
  return count;
}

// <u, code> of a row that is neither short nor long, without its scale.
inline float packed_dot(const PackedLayout& layout, const std::uint8_t* row, const float* u) {
#if defined(__AVX512VBMI2__)
  if (layout.high_bits <= 64) {  // all positions fit one register of bytes
    const std::uint64_t word = high_word(layout, row, 0);
    if (static_cast<std::size_t>(__builtin_popcountll(word)) != layout.k) return 0.0f;
    alignas(64) static constexpr std::uint8_t kBytes[64] = {
        0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
        22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43,
        44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
    __m512i positions = _mm512_maskz_compress_epi8(word, load<__m512i>(kBytes));
    return sum_groups(layout, row, u, [&](std::size_t) {
      const __m512i group = _mm512_cvtepu8_epi32(_mm512_castsi512_si128(positions));
      positions = _mm512_alignr_epi64(positions, positions, 2);
      return reinterpret_cast<Uint32s>(group);
    });
  }
#endif
  std::uint32_t positions[kMaxHighBits + kFloats];
  if (set_bits(layout, row, positions) != layout.k) return 0.0f;
  return sum_groups(layout, row, u, [&](std::size_t i) { return load<Uint32s>(positions + i); });
}

#endif

void packed_dots(const PackedLayout& layout, const std::uint8_t* rows, std::size_t n_rows, const float* u,
                 float* scores) {
  for (std::size_t r = 0; r < n_rows; ++r) {
    const std::uint8_t* row = rows + r * layout.row_bytes;
#if !defined(COMPRESSAE_PLAIN)
    const auto scale = load<std::uint16_t>(row);
    if (!(scale & 0x8000) && layout.high_bits <= kMaxHighBits) {
      scores[r] = from_half(scale) * packed_dot(layout, row, u);
      continue;
    }
#endif
    scores[r] = plain::packed_dot(layout, row, u);
  }
}

}  // namespace
}  // namespace compressae
