// The atoms that pursuit has chosen for a vector, and when to solve for their values.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "dictionary/dictionary.hpp"
#include "kernels/dispatch.hpp"

namespace compressae {

// Values are solved for whenever the support has grown by solve_every atoms, or by a third where that is more.
struct Schedule {
  std::size_t k;
  std::size_t solve_every;

  // The size of the support to solve at next. Solving once more for the last few atoms is not worth it.
  std::size_t after(std::size_t solve) const {
    solve += std::max(solve_every, solve / 3);
    return 8 * solve > 7 * k ? k : solve;
  }
};

// The atoms chosen for one vector, and the values of least squares.
class Support {
 public:
  explicit Support(std::size_t k)
      : stride_(lanes(k)), inverse_(k * stride_), transposed_(k * stride_), coordinates_(k), solution_(stride_) {}

  // What all supports of a thread may use in turn.
  struct Scratch {
    explicit Scratch(std::size_t k)
        : row((k + kLanes - 1) / kLanes * kLanes), next(row.size()), products((k + 1) * k), atoms(k) {}

    std::vector<float> row, next, products;
    std::vector<const float*> atoms;
    std::vector<std::size_t> kept;
    std::vector<std::pair<std::uint16_t, float>> pairs;
  };

  // Begins anew.
  void clear() {
    latents_.clear();
    unusable_.clear();
    solved_ = 0;
  }

  void choose(std::size_t latent) { latents_.push_back(latent); }

  std::size_t size() const { return latents_.size(); }
  const std::vector<std::size_t>& latents() const { return latents_; }
  // Atoms that were chosen and given up.
  const std::vector<std::size_t>& unusable() const { return unusable_; }
  const float* values() const { return solution_.data(); }

  // Least-squares values for x, from the inverse of the Cholesky factor of the support's Gram matrix, which grows by
  // the atoms that were chosen since. Those that depend on others, or explain no more than `negligible` beyond them,
  // are given up.
  void solve(const Dictionary& dictionary, const float* x, float negligible, Scratch& scratch) {
    const std::size_t n_new = latents_.size() - solved_, n = latents_.size();
    for (std::size_t i = 0; i < n; ++i) scratch.atoms[i] = dictionary.atom(latents_[i]);
    const float* const* added = scratch.atoms.data() + solved_;
    float* with_atoms = scratch.products.data();
    float* with_x = with_atoms + n_new * n;
    kernel_.dots(added, n_new, scratch.atoms.data(), n, dictionary.dim(), with_atoms, n);
    kernel_.dots(added, n_new, &x, 1, dictionary.dim(), with_x, 1);
    std::size_t size = solved_;
    scratch.kept.resize(solved_);
    for (std::size_t i = 0; i < solved_; ++i) scratch.kept[i] = i;
    for (std::size_t i = 0; i < n_new; ++i) {
      const std::size_t at = solved_ + i;
      if (!extend(size, with_atoms + i * n, with_x[i], negligible, scratch)) {
        unusable_.push_back(latents_[at]);
        continue;
      }
      latents_[size] = latents_[at];
      scratch.kept.push_back(at);
      ++size;
    }
    latents_.resize(size);
    solved_ = size;
    std::fill(solution_.begin(), solution_.end(), 0.0f);
    kernel_.add_rows(inverse_.data(), stride_, coordinates_.data(), size, lanes(size), solution_.data());
  }

  // Writes exactly k distinct latents, ascending, and their values; places that are not needed hold value 0.
  void write(std::size_t k, std::uint16_t* latents, float* values, Scratch& scratch) const {
    auto& pairs = scratch.pairs;
    pairs.clear();
    for (std::size_t i = 0; i < latents_.size(); ++i)
      pairs.emplace_back(static_cast<std::uint16_t>(latents_[i]), solution_[i]);
    for (std::size_t latent = 0; pairs.size() < k; ++latent)
      if (std::find(latents_.begin(), latents_.end(), latent) == latents_.end())
        pairs.emplace_back(static_cast<std::uint16_t>(latent), 0.0f);
    std::sort(pairs.begin(), pairs.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    for (std::size_t i = 0; i < k; ++i) {
      latents[i] = pairs[i].first;
      values[i] = pairs[i].second;
    }
  }

  // Of the first correlation: about what rounding to bytes leaves of a residual of zero.
  static constexpr float kNegligible = 1e-3f;

 private:
  // Adds a row to the inverse factor; gram: the atom's products with all atoms before compaction, of which
  // scratch.kept are the support.
  bool extend(std::size_t size, const float* gram, float correlation, float negligible, Scratch& scratch) {
    float* row = scratch.row.data();
    for (std::size_t i = 0; i < size; ++i) scratch.next[i] = gram[scratch.kept[i]];
    std::fill_n(row, lanes(size), 0.0f);
    kernel_.add_rows(transposed_.data(), stride_, scratch.next.data(), size, lanes(size), row);
    const float pivot = 1.0f - kernel_.dot(row, row, size);
    if (!(pivot > kSmallestPivot)) return false;
    const float inverse = 1.0f / std::sqrt(pivot);
    coordinates_[size] = (correlation - kernel_.dot(row, coordinates_.data(), size)) * inverse;
    if (!(std::fabs(coordinates_[size]) > negligible)) return false;
    for (std::size_t i = 0; i < size; ++i) row[i] *= -inverse;
    float* added = inverse_.data() + size * stride_;
    std::fill_n(added, stride_, 0.0f);
    std::fill_n(transposed_.data() + size * stride_, stride_, 0.0f);
    kernel_.add_rows(inverse_.data(), stride_, row, size, lanes(size), added);
    added[size] = inverse;
    for (std::size_t i = 0; i <= size; ++i) transposed_[i * stride_ + size] = added[i];
    return true;
  }

  static std::size_t lanes(std::size_t size) { return (size + kLanes - 1) / kLanes * kLanes; }

  // Of a unit atom, the share outside of the span of the chosen ones; below this, float32 solves nothing.
  static constexpr float kSmallestPivot = 1e-3f;

  const Kernels& kernel_ = kernels();
  std::size_t stride_;             // k, padded to whole lanes
  std::size_t solved_ = 0;         // atoms that the factor holds
  std::vector<float> inverse_;     // (k, stride) inverse of the lower Cholesky factor
  std::vector<float> transposed_;  // the same, transposed
  std::vector<float>
      coordinates_;  // of x in the support's atoms made orthogonal: the inverse times their products with x
  std::vector<float> solution_;
  std::vector<std::size_t> latents_;
  std::vector<std::size_t> unusable_;
};

}  // namespace compressae
