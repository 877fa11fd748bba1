// Orthogonal matching pursuit against a dictionary of unit rows (Pati et al., 1993), with the Gram matrix
// (Rubinstein et al., 2008): the residual is never formed, only its correlations with the dictionary. These choose
// atoms and are rounded to bytes; the values of the chosen atoms come from products in float32.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "dictionary/dictionary.hpp"
#include "kernels/dispatch.hpp"

namespace compressae {

class Pursuit {
 public:
  // The support's least-squares values are solved for, and the residual's correlations recomputed from them,
  // whenever the support has grown by solve_every atoms, or by a third where that is more; in between each atom
  // takes its correlation as its value (matching pursuit).
  Pursuit(const Dictionary& dictionary, const GramBytes& gram, std::size_t k, std::size_t solve_every)
      : dictionary_(dictionary),
        gram_(gram),
        k_(k),
        solve_every_(solve_every),
        stride_((k + kLanes - 1) / kLanes * kLanes),
        residual_(dictionary.stride()),
        inverse_(k * stride_),
        transposed_(k * stride_),
        coordinates_(k),
        solution_(stride_),
        row_(stride_),
        next_(stride_),
        products_((k + 1) * k) {}

  // x: a vector of unit norm, and its products with the dictionary. Writes exactly k distinct latents, ascending,
  // and their least-squares values; places that the vector does not need hold value 0.
  void encode(const float* x, const float* products, std::uint16_t* latents, float* values) {
    std::memcpy(residual_.data(), products, residual_.size() * sizeof(float));
    support_.clear();
    atoms_.clear();
    rows_.clear();
    unusable_.clear();
    solved_ = 0;
    std::fill(inverse_.begin(), inverse_.end(), 0.0f);
    std::fill(transposed_.begin(), transposed_.end(), 0.0f);
    std::size_t next_solve = solve_every_;
    for (;;) {
      const std::size_t latent = kernel_.arg_max_abs(residual_.data(), residual_.size());
      const float correlation = residual_[latent];
      if (support_.empty()) negligible_ = kNegligible * std::fabs(correlation);
      const bool explained = std::fabs(correlation) <= negligible_;
      if (!explained) choose(latent);
      if (explained || support_.size() == std::min(next_solve, k_)) {
        solve(x);
        if (explained || support_.size() == k_ || unusable_.size() >= k_) break;
        if (support_.size() >= next_solve) next_solve = after(next_solve);
        std::memcpy(residual_.data(), products, residual_.size() * sizeof(float));
        subtract(0, solution_.data());
      } else {
        subtract(support_.size() - 1, &correlation);
      }
      for (const std::size_t chosen : support_) residual_[chosen] = 0.0f;
      for (const std::size_t skipped : unusable_) residual_[skipped] = 0.0f;
    }
    write(latents, values);
  }

 private:
  // The size of the support to solve at next. Solving once more for the last few atoms is not worth it.
  std::size_t after(std::size_t solve) const {
    solve += std::max(solve_every_, solve / 3);
    return 8 * solve > 7 * k_ ? k_ : solve;
  }

  void choose(std::size_t latent) {
    support_.push_back(latent);
    atoms_.push_back(dictionary_.atom(latent));
    rows_.push_back(gram_.row(latent));
  }

  // Takes the chosen atoms from `first` on, times their values, from the residual.
  void subtract(std::size_t first, const float* values) {
    weights_.clear();
    for (std::size_t i = first; i < support_.size(); ++i)
      weights_.push_back(-values[i - first] * gram_.scale(support_[i]));
    kernel_.add_byte_rows(rows_.data() + first, weights_.data(), weights_.size(), residual_.size(), residual_.data());
  }

  // Least-squares values of the support, from the inverse of the Cholesky factor of its Gram matrix, which grows by
  // the atoms that were chosen since. Those that depend on others, or explain nothing beyond them, are given up.
  void solve(const float* x) {
    const std::size_t n_new = support_.size() - solved_;
    const float* const* added = atoms_.data() + solved_;
    float* with_atoms = products_.data();
    float* with_x = with_atoms + n_new * k_;
    kernel_.dots(added, n_new, atoms_.data(), atoms_.size(), dictionary_.dim(), with_atoms, k_);
    kernel_.dots(added, n_new, &x, 1, dictionary_.dim(), with_x, 1);
    std::size_t size = solved_;
    kept_.resize(solved_);
    for (std::size_t i = 0; i < solved_; ++i) kept_[i] = i;
    for (std::size_t i = 0; i < n_new; ++i) {
      const std::size_t at = solved_ + i;
      if (!extend(size, with_atoms + i * k_, with_x[i])) {
        unusable_.push_back(support_[at]);
        continue;
      }
      support_[size] = support_[at];
      atoms_[size] = atoms_[at];
      rows_[size] = rows_[at];
      kept_.push_back(at);
      ++size;
    }
    support_.resize(size);
    atoms_.resize(size);
    rows_.resize(size);
    solved_ = size;
    std::fill(solution_.begin(), solution_.end(), 0.0f);
    kernel_.add_rows(inverse_.data(), stride_, coordinates_.data(), size, stride_, solution_.data());
  }

  // Adds a row to the inverse factor; gram: the atom's products with all atoms before compaction, of which kept_
  // are the support.
  bool extend(std::size_t size, const float* gram, float correlation) {
    for (std::size_t i = 0; i < size; ++i) next_[i] = gram[kept_[i]];
    std::fill(row_.begin(), row_.end(), 0.0f);
    kernel_.add_rows(transposed_.data(), stride_, next_.data(), size, stride_, row_.data());
    const float pivot = 1.0f - kernel_.dot(row_.data(), row_.data(), size);
    if (!(pivot > kSmallestPivot)) return false;
    const float inverse = 1.0f / std::sqrt(pivot);
    coordinates_[size] = (correlation - kernel_.dot(row_.data(), coordinates_.data(), size)) * inverse;
    if (!(std::fabs(coordinates_[size]) > negligible_)) return false;
    for (std::size_t i = 0; i < size; ++i) row_[i] *= -inverse;
    float* added = inverse_.data() + size * stride_;
    std::fill_n(added, stride_, 0.0f);
    kernel_.add_rows(inverse_.data(), stride_, row_.data(), size, stride_, added);
    added[size] = inverse;
    for (std::size_t i = 0; i <= size; ++i) transposed_[i * stride_ + size] = added[i];
    return true;
  }

  void write(std::uint16_t* latents, float* values) {
    pairs_.clear();
    for (std::size_t i = 0; i < support_.size(); ++i)
      pairs_.push_back({static_cast<std::uint16_t>(support_[i]), solution_[i]});
    for (std::size_t latent = 0; pairs_.size() < k_; ++latent)
      if (std::find(support_.begin(), support_.end(), latent) == support_.end())
        pairs_.push_back({static_cast<std::uint16_t>(latent), 0.0f});
    std::sort(pairs_.begin(), pairs_.end(), [](const Pair& a, const Pair& b) { return a.latent < b.latent; });
    for (std::size_t i = 0; i < k_; ++i) {
      latents[i] = pairs_[i].latent;
      values[i] = pairs_[i].value;
    }
  }

  struct Pair {
    std::uint16_t latent;
    float value;
  };

  // Of a unit atom, the share outside of the span of the chosen ones; below this, float32 solves nothing.
  static constexpr float kSmallestPivot = 1e-3f;
  // Of the first correlation: about what rounding to bytes leaves of a residual of zero.
  static constexpr float kNegligible = 1e-3f;

  const Kernels& kernel_ = kernels();
  const Dictionary& dictionary_;
  const GramBytes& gram_;
  std::size_t k_;
  std::size_t solve_every_;
  std::size_t stride_;      // k, padded to whole lanes
  std::size_t solved_ = 0;  // atoms of the support that the factor holds
  float negligible_ = 0.0f;
  std::vector<float> residual_;    // correlations of the residual, padded with zeros to whole blocks
  std::vector<float> inverse_;     // (k, stride) inverse of the lower Cholesky factor
  std::vector<float> transposed_;  // the same, transposed
  std::vector<float>
      coordinates_;  // of x in the support's atoms made orthogonal: the inverse times their products with x
  std::vector<float> solution_;
  std::vector<float> row_;
  std::vector<float> next_;
  std::vector<float> products_;
  std::vector<float> weights_;
  std::vector<std::size_t> support_;
  std::vector<const float*> atoms_;       // of the support
  std::vector<const std::int8_t*> rows_;  // Gram rows of the support
  std::vector<std::size_t> unusable_;
  std::vector<std::size_t> kept_;
  std::vector<Pair> pairs_;
};

}  // namespace compressae
