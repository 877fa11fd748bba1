// The scope of a search: an index as a row of parts, and the documents allowed.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/allowed.hpp"
#include "codes/forward.hpp"
#include "kernels/dispatch.hpp"
#include "lists/inverted.hpp"
#include "search/refine.hpp"

namespace compressae {

// A run of documents in both forms, of which a search may need only one.
struct Part {
  const InvertedView* inverted;
  const Forward* forward;
  std::size_t n_documents;
  std::size_t first_row;
  Allowed allowed = {};  // of its own documents
};

// A window of a part.
struct Window {
  const Part* part;
  std::size_t number;

  std::size_t first() const { return number * kWindow; }
  std::size_t last() const { return std::min(first() + kWindow, part->n_documents); }
};

// The scope that all queries of a batch share.
struct Scope {
  std::vector<Part> parts;
  std::size_t n_entries;  // of projections
  Allowed allowed;
  std::size_t n_allowed;
  std::vector<std::vector<std::uint8_t>> bitmaps = {};  // of parts that do not begin at a byte of `allowed`
  Refinement refinement = {};                           // of what is scored by whole codes

  std::size_t n_documents() const { return parts.empty() ? 0 : parts.back().first_row + parts.back().n_documents; }

  std::vector<Window> windows() const {
    std::vector<Window> all;
    for (const Part& part : parts)
      for (std::size_t w = 0; w * kWindow < part.n_documents; ++w) all.push_back({&part, w});
    return all;
  }
};

// Bits first ... first + count of a bitmap, from a whole byte on.
inline std::vector<std::uint8_t> bits_from(const std::uint8_t* bitmap, std::size_t first, std::size_t count) {
  std::vector<std::uint8_t> bits((count + 7) / 8);
  const std::size_t shift = first % 8, last = (first + count - 1) / 8;
  for (std::size_t i = 0; i < bits.size(); ++i) {
    const std::size_t at = first / 8 + i;
    const unsigned both = bitmap[at] | (at < last ? static_cast<unsigned>(bitmap[at + 1]) << 8 : 0u);
    bits[i] = static_cast<std::uint8_t>(both >> shift);
  }
  return bits;
}

// bitmap: of the documents that a search is among, as Allowed has it; null allows all.
inline Scope scope_of(std::vector<Part>&& parts, std::size_t n_entries, const std::uint8_t* bitmap) {
  Scope scope{std::move(parts), n_entries, {bitmap}, 0};
  const std::size_t n = scope.n_documents();
  scope.n_allowed = bitmap != nullptr ? kernels().count_bits(bitmap, (n + 7) / 8) : n;
  if (bitmap == nullptr) return scope;
  for (Part& part : scope.parts) {
    if (part.first_row % 8 == 0) {
      part.allowed = {bitmap + part.first_row / 8};
    } else {
      scope.bitmaps.push_back(bits_from(bitmap, part.first_row, part.n_documents));
      part.allowed = {scope.bitmaps.back().data()};
    }
  }
  return scope;
}

}  // namespace compressae
