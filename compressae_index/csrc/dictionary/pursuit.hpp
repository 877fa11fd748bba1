// Orthogonal matching pursuit against a dictionary of unit rows (Pati et al., 1993), of many vectors in step. Each
// round multiplies all residuals with all atoms and keeps the candidates that correlate most with each; the round's
// atoms are chosen among these, whose correlations alone are updated. Correlations choose atoms and are products of
// bytes; the values of the chosen atoms come from products in float32. For large dictionaries: see gram_pursuit.hpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "dictionary/candidates.hpp"
#include "dictionary/dictionary.hpp"
#include "dictionary/support.hpp"
#include "kernels/dispatch.hpp"

namespace compressae {

class Pursuit {
 public:
  // Vectors to encode in step, in whole tiles: each atom is read once for all of them, and their supports stay in the
  // second-level cache.
  static std::size_t vectors_in_step(std::size_t k) { return std::clamp<std::size_t>(4096 / k / 32 * 32, 32, 256); }

  // Values are solved for, and the residual is formed and its candidates found, as Schedule says; in between each atom
  // takes its correlation as its value (matching pursuit).
  Pursuit(const Dictionary& dictionary, std::size_t k, std::size_t solve_every)
      : dictionary_(dictionary),
        k_(k),
        schedule_{k, solve_every},
        depth_(Candidates::depth(dictionary.n_latents())),
        scratch_(k),
        atom_(dictionary.length()) {}

  // vectors: (n, dim) of unit norm. Writes exactly k distinct latents a vector, ascending, and their least-squares
  // values; places that it does not need hold value 0.
  void encode(const float* vectors, std::size_t n, std::uint16_t* latents, float* values) {
    const std::size_t dim = dictionary_.dim();
    while (states_.size() < n) states_.emplace_back(k_);
    residuals_.assign(vectors, vectors + n * dim);
    active_.clear();
    for (std::size_t i = 0; i < n; ++i) {
      states_[i].support.clear();
      states_[i].next_solve = schedule_.solve_every;
      active_.push_back(i);
    }
    while (!active_.empty()) {
      const RoundedVectors rounded = dictionary_.bytes().rounded(residuals_.data(), active_.size(), Planes::kRounded);
      const std::size_t n_groups = dictionary_.bytes().n_groups(depth_);
      // Not a power of two, or they would share their places in caches.
      const std::size_t stride = n_groups + kLanes;
      strongest_.resize(active_.size() * stride);
      dictionary_.bytes().strongest(rounded, depth_, strongest_.data(), stride);
      std::size_t left = 0;
      for (std::size_t row = 0; row < active_.size(); ++row) {
        const std::size_t i = active_[row];
        State& state = states_[i];
        candidates_.find(strongest_.data() + row * stride, n_groups, depth_,
                         Candidates::wanted(std::min(state.next_solve, k_) - state.support.size()),
                         {&state.support.latents(), &state.support.unusable()});
        if (advance(state, vectors + i * dim)) {
          state.support.write(k_, latents + i * k_, values + i * k_, scratch_);
          continue;
        }
        write_residual(state.support, vectors + i * dim, residuals_.data() + left * dim);
        active_[left++] = i;
      }
      active_.resize(left);
    }
  }

 private:
  struct State {
    explicit State(std::size_t k) : support(k) {}

    Support support;
    std::size_t next_solve = 0;  // the size of the support to solve at
    float negligible = 0.0f;     // correlations that explain nothing
  };

  // One round: chooses atoms and solves for their values. Returns whether that was the last.
  bool advance(State& state, const float* x) {
    Support& support = state.support;
    const std::size_t wanted = std::min(state.next_solve, k_);
    bool chose = false;
    while (support.size() < wanted) {
      const std::optional<Choice> choice = candidates_.choose(support, state.negligible);
      if (!choice) break;
      chose = true;
      if (support.size() < wanted) take(*choice);
    }
    support.solve(dictionary_, x, state.negligible, scratch_);
    if (!chose || support.size() == k_ || support.unusable().size() >= k_) return true;
    if (support.size() >= state.next_solve) state.next_solve = schedule_.after(state.next_solve);
    return false;
  }

  // Takes a chosen atom times its value from the residual that candidates correlate with.
  void take(const Choice& choice) {
    const std::int32_t surplus = dictionary_.copy_bytes(choice.latent, atom_.data());
    add_products(-choice.value * dictionary_.bytes().scales()[choice.latent], surplus);
  }

  // Adds to the candidates' correlations their products with atom_, times `factor`.
  void add_products(float factor, std::int32_t surplus) {
    const std::size_t n = candidates_.size();
    rows_.resize(std::max(n, rows_.size()));
    sums_.resize(rows_.size());
    scales_.resize(rows_.size());
    const std::uint32_t* latents = candidates_.latents().data();
    for (std::size_t i = 0; i < n; ++i) rows_[i] = dictionary_.row(latents[i]);
    kernel_.byte_dots(rows_.data(), n, atom_.data(), dictionary_.length(), surplus, sums_.data());
    const std::int32_t* sums = sums_.data();
    // Gathered apart, so that the rest is done in vectors.
    float *factors = scales_.data(), *values = candidates_.values();
    for (std::size_t i = 0; i < n; ++i) factors[i] = dictionary_.bytes().scales()[latents[i]];
    for (std::size_t i = 0; i < n; ++i) values[i] += factor * factors[i] * static_cast<float>(sums[i]);
  }

  void write_residual(const Support& support, const float* x, float* residual) const {
    std::copy_n(x, dictionary_.dim(), residual);
    for (std::size_t i = 0; i < support.size(); ++i) {
      const float* atom = dictionary_.atom(support.latents()[i]);
      const float value = support.values()[i];
      for (std::size_t j = 0; j < dictionary_.dim(); ++j) residual[j] -= value * atom[j];
    }
  }

  const Kernels& kernel_ = kernels();
  const Dictionary& dictionary_;
  std::size_t k_;
  Schedule schedule_;
  std::size_t depth_;  // atoms of a group
  Support::Scratch scratch_;
  std::vector<State> states_;
  std::vector<std::size_t> active_;
  std::vector<float> residuals_;          // (active, dim)
  std::vector<std::uint32_t> strongest_;  // (active, groups), padded
  Candidates candidates_;
  std::vector<std::int8_t> atom_;
  std::vector<const std::uint8_t*> rows_;
  std::vector<std::int32_t> sums_;
  std::vector<float> scales_;
};

}  // namespace compressae
