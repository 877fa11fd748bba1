// Stage three as Python's objects, over arrays that these keep alive.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "bindings/arrays.hpp"
#include "search/refine.hpp"

namespace compressae::bindings {

// Of whichever kind.
class RefinerPart {
 public:
  // Scores of rows (n_queries, width), which are distinct in each query, in place of their sums over codes. Where a row
  // is negative the score stays.
  Output<float> rescore(const Input<float, 2>& queries, const Input<float, 2>& scores,
                        const Input<std::int64_t, 2>& rows, std::size_t num_threads) const;

  std::size_t n_documents() const { return refiner_->n_documents(); }
  std::size_t dim() const { return refiner_->dim(); }
  const Refiner& refiner() const { return *refiner_; }

 protected:
  std::unique_ptr<const Refiner> refiner_;
};

}  // namespace compressae::bindings
