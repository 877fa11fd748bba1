// The vocabulary of vectors that kernels are written over. Each instruction set implements it in a file of its own;
// where one needs another algorithm, that is in the header of the family.
//
// Types, and the numbers that each holds:
//
//            AVX-512  AVX2  NEON
//   Int16s     32      16     8   kInt16s
//   Int32s     16       8     4   kInt32s
//   Floats     16       8     8   kFloats; in NEON two registers, so that numbers packed in groups of 8 fit
//   Uint32s    16       8     8   kFloats
//   Floats8     8       8     8
//   EightInt16s 8       8     8
//
// Except for NEON's pairs they are vectors of GCC and Clang, whose operators work lane by lane; of Uint32s, + - & >>
// are everywhere. A bit trick that a function needs is explained where it is implemented. Functions:
//
//   load<T>(from), store(to, x)            any type, any address
//   repeated(x)                            x in every lane
//   larger(x, y)                           the larger of each lane
//   any_above(x, threshold)                whether any lane exceeds the threshold
//   bits_above(x, threshold)               of 32 numbers in x[0], x[1], ...: bit i says whether number i exceeds it
//   upper_bytes(bytes)                     signed bytes as the upper halves of 16 bits: byte << 8
//   multiply_rounded(x, y)                 (x * y + (1 << 14)) >> 15, unless both are the smallest number
//   sums_of_four(x, sums)                  the sums of the lanes of x[0] ... x[3], of Int32s
//   interleave_bytes(x)                    of each 16 bytes of x[0] ... x[3], the first of all four, then the second of
//                                          all ...: the first four columns in x[0], the next in x[1] ...
//   floats_of(bytes)                       signed bytes as floats
//   multiply_add(x, y, sums)               x * y + sums, rounded once
//   add_by_eights(x, y, sums)              the same for one group of 8 lanes after the other, in Floats8
//   sum_of(x)                              sum of the lanes
//   zero_upwards()                         0, 1, 2, ...
//   shift_left(x, n)                       every lane by n bits
//   widened(numbers)                       uint16 as Uint32s (not in AVX-512, which loads part of a vector)
//   gather(table, index)                   table[index] of each lane
//   keep_first(x, n)                       zeros in all lanes but the first n
//   load_first(from, n)                    the first n, and zeros; reads no more (not in NEON)
//
// Arrays of vectors stay in registers where loops over them are unrolled before anything else (#pragma GCC unroll);
// copied or zeroed as a whole, they are in memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace compressae {
namespace {

template <typename T>
T load(const void* from) {
  T x;
  __builtin_memcpy(&x, from, sizeof x);
  return x;
}

template <typename T>
void store(void* to, T x) {
  __builtin_memcpy(to, &x, sizeof x);
}

}  // namespace
}  // namespace compressae

#if defined(__AVX512BW__)
#include "kernels/vectors_avx512.hpp"
#elif defined(__AVX2__)
#include "kernels/vectors_avx2.hpp"
#elif defined(COMPRESSAE_NEON)  // defined by the build: all of aarch64 has NEON, the plain table's compilation too
#include "kernels/vectors_neon.hpp"
#else
#define COMPRESSAE_PLAIN 1
#endif

#if !defined(COMPRESSAE_PLAIN)
namespace compressae {
namespace {

constexpr std::size_t kInt16s = sizeof(Int16s) / 2, kInt32s = sizeof(Int32s) / 4, kFloats = sizeof(Floats) / 4;

}  // namespace
}  // namespace compressae
#endif
