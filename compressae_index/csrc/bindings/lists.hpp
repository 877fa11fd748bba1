// Posting lists as Python's objects, over arrays that these keep alive.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/codes.hpp"
#include "lists/inverted.hpp"

namespace compressae::bindings {

class InvertedLists {
 public:
  // Some windows of lists: [first, last).
  using Range = std::tuple<const InvertedLists*, std::size_t, std::size_t>;

  static InvertedLists build(const Input<std::uint16_t, 2>& latents, const Input<float, 2>& values,
                             std::size_t n_latents, std::size_t num_threads, const std::optional<Input<bool, 2>>& kept);
  // Ranges one after the other.
  static InvertedLists concatenate(const std::vector<Range>& ranges);
  InvertedLists(Arrays arrays, std::size_t n_documents, std::size_t n_latents);

  Hits search(const Input<float, 2>& projections, std::size_t query_nnz, std::size_t top, const Bitmap& bitmap,
              std::size_t num_threads, const ForwardPart* codes, bool damped) const;
  // Throws where they are not of ascending documents, or hold fewer or more postings than so many of each.
  void validate(std::size_t fewest, std::size_t most, std::size_t num_threads) const;
  Output<std::int64_t> list_lengths() const;

  Arrays arrays() const { return arrays_; }
  std::size_t nbytes() const { return nbytes_; }
  std::size_t n_documents() const { return lists_.n_documents; }
  const InvertedView& view() const { return lists_; }

 private:
  static InvertedLists from_built(InvertedArrays&& built, std::size_t n_documents, std::size_t n_latents);

  Arrays arrays_;
  InvertedView lists_;
  std::size_t nbytes_ = 0;
};

}  // namespace compressae::bindings
