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

// A run of documents in both forms, of which a search may need only one. All parts but the last hold whole windows.
struct Part {
  const InvertedView* inverted;
  const Forward* forward;
  std::size_t n_documents;
  std::size_t first_row;

  Allowed of(const Allowed& allowed) const { return {allowed.all() ? nullptr : allowed.bitmap + first_row / 8}; }
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
  std::size_t n_latents;
  Allowed allowed;
  std::size_t n_allowed;
  Refinement refinement = {};  // of what is scored by whole codes

  std::size_t n_documents() const { return parts.empty() ? 0 : parts.back().first_row + parts.back().n_documents; }

  std::vector<Window> windows() const {
    std::vector<Window> all;
    for (const Part& part : parts)
      for (std::size_t w = 0; w * kWindow < part.n_documents; ++w) all.push_back({&part, w});
    return all;
  }
};

// bitmap: of the documents that a search is among, as Allowed has it; null allows all.
inline Scope scope_of(std::vector<Part>&& parts, std::size_t n_latents, const std::uint8_t* bitmap) {
  Scope scope{std::move(parts), n_latents, {bitmap}, 0};
  const std::size_t n = scope.n_documents();
  scope.n_allowed = bitmap != nullptr ? kernels().count_bits(bitmap, (n + 7) / 8) : n;
  return scope;
}

}  // namespace compressae
