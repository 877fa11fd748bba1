// Four products of bytes in each lane, as products.hpp and residual_dots.hpp add them up.
#pragma once

#include "kernels/vectors.hpp"

#if !defined(COMPRESSAE_PLAIN)
namespace compressae {
namespace {

// sums + the products of the 4 bytes of each lane: unsigned ones of rows, and signed ones of a query.
inline Int32s add_step(Int32s sums, Int32s rows, Int32s query) {
#if defined(__AVX512VNNI__)
  return reinterpret_cast<Int32s>(_mm512_dpbusd_epi32(raw(sums), raw(rows), raw(query)));
#else
  // Even and odd: a pair of bytes is 16 bits. Its lower (even) byte is taken by a mask, or, signed, by moving it up and
  // back; its upper (odd) one by moving it down. Products of pairs of 16 bits are then added in 32. AVX2 also
  // multiplies bytes, but cuts the sums off at 16 bits.
  using Unsigned = std::uint16_t __attribute__((vector_size(sizeof(Int32s))));
  using Signed = std::int16_t __attribute__((vector_size(sizeof(Int32s))));
  const auto bytes = reinterpret_cast<Unsigned>(rows);
  const auto entries = reinterpret_cast<Signed>(query);
  sums = add_pair_products(sums, reinterpret_cast<Int16s>(bytes & 0xff), reinterpret_cast<Int16s>(entries << 8 >> 8));
  return add_pair_products(sums, reinterpret_cast<Int16s>(bytes >> 8), reinterpret_cast<Int16s>(entries >> 8));
#endif
}

}  // namespace
}  // namespace compressae
#endif
