// The packed form of codes: every row the same number of bytes, so that a row is found by multiplication.
//
// The bits of a row, the lowest of a byte first, one field behind the other:
//   16               the scale in half precision, whose sign bit marks a short row: one that holds values of 0
//   k + (h-1 >> l)   high parts of the ascending latents (Elias-Fano): bit (latent[i] >> l) + i is set
//   k * l            low parts: the lower l bits of each latent
//   k * value_bits   level indices: a sign bit above the number of a level
// Value i is sign * levels[number] * scale. In a short row number 0 means exactly 0 in place of levels[0].
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/half.hpp"
#include "base/huge.hpp"
#include "base/thread_pool.hpp"
#include "codes/forward.hpp"
#include "kernels/dispatch.hpp"

namespace compressae {

static_assert(std::endian::native == std::endian::little, "rows are read as little-endian words");

inline PackedField packed_field(std::size_t start, std::size_t width) {
  PackedField field{};
  field.start = start;
  field.width = width;
  for (std::size_t quarter = 0; quarter < 4; ++quarter) {
    field.quarter_byte[quarter] = (start % 8 + 4 * quarter * width) / 8;
    for (std::size_t i = 4 * quarter; i < 4 * quarter + 4; ++i) {
      const std::size_t bit = start % 8 + i * width;
      field.shift[i] = static_cast<std::uint32_t>(bit % 8);
      for (std::size_t byte = 0; byte < 4; ++byte) {
        field.permute[4 * i + byte] = static_cast<std::uint8_t>(bit / 8 + byte);
        field.shuffle[4 * i + byte] = static_cast<std::uint8_t>(bit / 8 + byte - field.quarter_byte[quarter]);
      }
    }
  }
  return field;
}

// The layout of a row; l is the one that takes the fewest bits, the larger of equally good ones.
inline PackedLayout packed_layout(std::size_t n_latents, std::size_t k, std::size_t value_bits) {
  std::size_t low_bits = 0;
  const auto size = [&](std::size_t l) { return k * l + k + ((n_latents - 1) >> l); };
  for (std::size_t l = 1; l <= 16; ++l)
    if (size(l) <= size(low_bits)) low_bits = l;
  PackedLayout layout{};
  layout.k = k;
  layout.high_bits = k + ((n_latents - 1) >> low_bits);
  layout.low = packed_field(16 + layout.high_bits, low_bits);
  layout.value = packed_field(16 + layout.high_bits + k * low_bits, value_bits);
  layout.row_bytes = (layout.value.start + k * value_bits + 7) / 8;
  return layout;
}

// Levels of both signs, so that a level index needs no look at its sign bit.
inline void set_levels(PackedLayout& layout, const float* levels) {
  const std::size_t n_levels = std::size_t{1} << (layout.value.width - 1);
  for (std::size_t i = 0; i < n_levels; ++i) {
    layout.levels[i] = levels[i];
    layout.levels[n_levels + i] = -levels[i];
  }
}

// Packed rows, borrowed. Kernels read up to kSlack bytes from inside a row on, which would leave the array, maybe a
// mapped file, behind the last rows: these are read from a copy.
class PackedView {
 public:
  PackedView() = default;
  PackedView(PackedLayout row_layout, const std::uint8_t* rows, std::size_t n)
      : n_documents(n), k(row_layout.k), layout(row_layout), rows_(rows) {
    const std::size_t copied = std::min(n, kSlack / layout.row_bytes + 1);
    first_copied_ = n - copied;
    if (n > 0) copy_.assign(rows + first_copied_ * layout.row_bytes, rows + n * layout.row_bytes);
    copy_.resize(copy_.size() + kSlack);
  }

  const std::uint8_t* row(std::size_t i) const {
    return i < first_copied_ ? rows_ + i * layout.row_bytes : copy_.data() + (i - first_copied_) * layout.row_bytes;
  }

  // As CodeRows has them.
  void prefetch(std::size_t i) const {
    const std::uint8_t* first = row(i);
    for (std::size_t at = 0; at < layout.row_bytes; at += 64) __builtin_prefetch(first + at);
    __builtin_prefetch(first + layout.row_bytes - 1);
  }

  void scores(std::size_t first, std::size_t count, const float* u, const Kernels& kernel, float* results) const {
    const std::size_t in_place = first < first_copied_ ? std::min(count, first_copied_ - first) : 0;
    kernel.packed_dots(layout, row(first), in_place, u, results);
    if (in_place < count) kernel.packed_dots(layout, row(first + in_place), count - in_place, u, results + in_place);
  }

  void scores_of(const std::size_t* rows, std::size_t count, const float* u, const Kernels& kernel,
                 float* results) const {
    thread_local std::vector<std::uint8_t> near;
    near.resize(kScoredRows * layout.row_bytes + kSlack);
    for (std::size_t i = 0; i < count; ++i)
      std::memcpy(near.data() + i * layout.row_bytes, row(rows[i]), layout.row_bytes);
    kernel.packed_dots(layout, near.data(), count, u, results);
  }

  // Whether a row is one that was packed of finite values.
  bool is_whole(std::size_t i, std::size_t n_latents) const;

  std::size_t n_documents = 0;
  std::size_t k = 0;
  PackedLayout layout{};

 private:
  static constexpr std::size_t kSlack = 64;

  const std::uint8_t* rows_ = nullptr;
  std::size_t first_copied_ = 0;
  std::vector<std::uint8_t> copy_;
};

// Sets `width` <= 16 bits of a row of zeros.
inline void put_bits(std::uint8_t* row, std::size_t bit, std::size_t width, std::uint32_t bits) {
  bits <<= bit % 8;
  for (std::size_t byte = bit / 8; byte <= (bit + width - 1) / 8 && width > 0; ++byte, bits >>= 8)
    row[byte] = static_cast<std::uint8_t>(row[byte] | bits);
}

inline std::uint32_t get_bits(const std::uint8_t* row, std::size_t bit, std::size_t width) {
  std::uint32_t bits;
  std::memcpy(&bits, row + bit / 8, sizeof bits);
  return bits >> bit % 8 & ((1u << width) - 1);
}

// row: layout.row_bytes zeros. latents ascend and level indices fit value_bits.
inline void pack_row(const PackedLayout& layout, const std::uint16_t* latents, const std::uint8_t* level_indices,
                     std::uint16_t scale, std::uint8_t* row) {
  std::memcpy(row, &scale, sizeof scale);
  for (std::size_t i = 0; i < layout.k; ++i) {
    const std::uint32_t latent = latents[i];
    put_bits(row, 16 + (latent >> layout.low.width) + i, 1, 1);
    put_bits(row, layout.low.start + i * layout.low.width, layout.low.width, latent & ((1u << layout.low.width) - 1));
    put_bits(row, layout.value.start + i * layout.value.width, layout.value.width, level_indices[i]);
  }
}

// Calls take(i, latent) for the latents of a row. False where it is damaged: not k ascending latents below n_latents.
// Up to 3 bytes behind the row are read.
template <typename Take>
bool for_each_latent(const PackedLayout& layout, std::size_t n_latents, const std::uint8_t* row, const Take& take) {
  std::size_t i = 0, least = 0;
  for (std::size_t bit = 0; bit < layout.high_bits; bit += 32) {
    std::uint32_t high;
    std::memcpy(&high, row + 2 + bit / 8, sizeof high);
    if (layout.high_bits - bit < 32) high &= (std::uint32_t{1} << (layout.high_bits - bit)) - 1;
    for (; high != 0; high &= high - 1) {
      if (i == layout.k) return false;
      const std::size_t place = bit + static_cast<std::size_t>(std::countr_zero(high));
      const std::size_t low = get_bits(row, layout.low.start + i * layout.low.width, layout.low.width);
      const std::size_t latent = ((place - i) << layout.low.width) + low;
      if (latent >= n_latents || latent < least) return false;
      least = latent + 1;
      take(i++, latent);
    }
  }
  return i == layout.k;
}

inline bool PackedView::is_whole(std::size_t i, std::size_t n_latents) const {
  std::uint16_t scale;
  std::memcpy(&scale, row(i), sizeof scale);
  return is_finite_half(scale) && for_each_latent(layout, n_latents, row(i), [](std::size_t, std::size_t) {});
}

// False where the row is damaged.
inline bool unpack_row(const PackedLayout& layout, std::size_t n_latents, const std::uint8_t* row,
                       std::uint16_t* latents, std::uint8_t* level_indices, std::uint16_t& scale) {
  std::memcpy(&scale, row, sizeof scale);
  return for_each_latent(layout, n_latents, row, [&](std::size_t i, std::size_t latent) {
    latents[i] = static_cast<std::uint16_t>(latent);
    level_indices[i] =
        static_cast<std::uint8_t>(get_bits(row, layout.value.start + i * layout.value.width, layout.value.width));
  });
}

// Throws where latents do not ascend below n_latents, or a level index does not fit.
inline void check_packable(const PackedLayout& layout, std::size_t n_latents, std::size_t row,
                           const std::uint16_t* latents, const std::uint8_t* level_indices) {
  for (std::size_t i = 0; i < layout.k; ++i) {
    // Messages are put together only where one is needed: this is the innermost loop.
    if (latents[i] >= n_latents || (i > 0 && latents[i] <= latents[i - 1]))
      throw std::invalid_argument("latents of row " + std::to_string(row) + " do not ascend below n_latents " +
                                  std::to_string(n_latents));
    if (level_indices[i] >> layout.value.width != 0)
      throw std::invalid_argument("a level index of row " + std::to_string(row) + " is " +
                                  std::to_string(level_indices[i]) + ", more than value_bits hold");
  }
}

// latents and level_indices: (n, k), scales: (n). The rows: (n, row_bytes).
inline HugeVector<std::uint8_t> pack_rows(const PackedLayout& layout, std::size_t n_latents,
                                          const std::uint16_t* latents, const std::uint8_t* level_indices,
                                          const std::uint16_t* scales, std::size_t n, std::size_t num_threads) {
  HugeVector<std::uint8_t> rows(n * layout.row_bytes);
  for_each_row(n, num_threads, [&](std::size_t row) {
    const std::size_t first = row * layout.k;
    check_packable(layout, n_latents, row, latents + first, level_indices + first);
    pack_row(layout, latents + first, level_indices + first, scales[row], rows.data() + row * layout.row_bytes);
  });
  return rows;
}

// The input of pack_rows.
struct UnpackedRows {
  UnpackedRows(std::size_t n, std::size_t k) : latents(n * k), level_indices(n * k), scales(n) {}

  std::vector<std::uint16_t> latents;
  std::vector<std::uint8_t> level_indices;
  std::vector<std::uint16_t> scales;
};

inline UnpackedRows unpack_rows(const PackedView& packed, std::size_t n_latents, std::size_t num_threads) {
  UnpackedRows rows(packed.n_documents, packed.k);
  for_each_row(packed.n_documents, num_threads, [&](std::size_t row) {
    const std::size_t first = row * packed.k;
    if (!unpack_row(packed.layout, n_latents, packed.row(row), rows.latents.data() + first,
                    rows.level_indices.data() + first, rows.scales[row]))
      throw std::invalid_argument("row " + std::to_string(row) + " of the packed codes is damaged");
  });
  return rows;
}

}  // namespace compressae
