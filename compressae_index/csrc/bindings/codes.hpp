// The forward part as Python's objects, over arrays that these keep alive.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "bindings/arrays.hpp"
#include "codes/forward.hpp"

namespace compressae::bindings {

// In whichever form.
class ForwardPart {
 public:
  Hits search(const Input<float, 2>& projections, std::size_t top, const Bitmap& bitmap, std::size_t num_threads) const;
  Hits rescore(const Input<float, 2>& projections, const Input<std::int64_t, 2>& candidates, std::size_t top,
               std::size_t num_threads) const;
  // Throws where a row is not a code.
  void validate(std::size_t num_threads) const;

  Arrays arrays() const { return arrays_; }
  std::size_t nbytes() const { return nbytes_; }
  std::size_t n_documents() const { return codes_->n_documents(); }
  std::size_t n_latents() const { return codes_->n_latents(); }
  std::size_t n_entries() const { return codes_->n_entries(); }
  std::size_t k() const { return codes_->k(); }
  const Forward& codes() const { return *codes_; }

 protected:
  explicit ForwardPart(Arrays arrays) : arrays_(std::move(arrays)) {}
  // The array "norms" of n documents, if there is one.
  Lengths lengths_of(std::size_t n);

  Arrays arrays_;
  std::unique_ptr<const Forward> codes_;
  std::size_t nbytes_ = 0;
};

}  // namespace compressae::bindings
