// Dictionaries, projections on them and codes over them.
#include "dictionary/dictionary.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "bindings/arrays.hpp"
#include "bindings/families.hpp"
#include "dictionary/encoding.hpp"
#include "dictionary/shared.hpp"
#include "kernels/kernels.hpp"

namespace compressae::bindings {
namespace {

using Codes = std::pair<Output<std::uint16_t>, Output<float>>;

Codes to_numpy(CodeArrays&& codes, std::size_t n, std::size_t k) {
  return {bindings::to_numpy(std::move(codes.latents), {n, k}), bindings::to_numpy(std::move(codes.values), {n, k})};
}

void require_atoms(const Input<float, 2>& atoms) {
  require_latents(atoms.shape(0));
  const std::size_t dim = atoms.shape(1);
  require(dim >= 1 && dim <= kMaxDim,
          "atoms have " + std::to_string(dim) + " dimensions, expected 1 to " + std::to_string(kMaxDim));
}

// Projections of vectors (n, dim), rough ones where that is not null, as arrays.
std::pair<Output<float>, std::optional<Output<float>>> projected(const Projection& exact, const RoughProjection* rough,
                                                                 const Input<float, 2>& vectors,
                                                                 const std::optional<Input<float, 1>>& mean,
                                                                 std::size_t num_threads) {
  require_equal(vectors.shape(1), exact.dim(), "columns of vectors");
  if (mean) require_equal(mean->shape(0), exact.dim(), "length of mean");
  const std::size_t n = vectors.shape(0);
  Projections projections =
      without_gil([&] { return project(exact, rough, vectors.data(), n, mean ? mean->data() : nullptr, num_threads); });
  std::optional<Output<float>> on_mean;
  if (mean) on_mean = bindings::to_numpy(std::move(projections.on_mean), {n, 1});
  return {bindings::to_numpy(std::move(projections.on_atoms), {n, exact.n_rows()}), on_mean};
}

class ProjectionBinding {
 public:
  explicit ProjectionBinding(const Input<float, 2>& atoms)
      : projection_((require_atoms(atoms), atoms.data()), atoms.shape(0), atoms.shape(1)) {}

  auto project(const Input<float, 2>& vectors, const std::optional<Input<float, 1>>& mean,
               std::size_t num_threads) const {
    return projected(projection_, nullptr, vectors, mean, num_threads);
  }

  Output<std::int8_t> entries() const {
    return bindings::to_numpy(projection_.entries(), {projection_.n_rows(), projection_.dim()});
  }
  const Projection& exact() const { return projection_; }
  std::size_t nbytes() const { return projection_.nbytes(); }

 private:
  Projection projection_;
};

class RoughProjectionBinding {
 public:
  explicit RoughProjectionBinding(const ProjectionBinding& exact) : projection_(exact.exact()) {}

  auto project(const Input<float, 2>& vectors, const std::optional<Input<float, 1>>& mean,
               std::size_t num_threads) const {
    return projected(projection_.exact(), &projection_, vectors, mean, num_threads);
  }
  std::size_t nbytes() const { return projection_.nbytes(); }

 private:
  RoughProjection projection_;
};

class DictionaryBinding {
 public:
  explicit DictionaryBinding(Input<float, 2> atoms)
      : atoms_((require_atoms(atoms), std::move(atoms))), shared_(atoms_.data(), n_latents(), dim()) {}

  Codes pursue(const Input<float, 2>& vectors, std::size_t k, std::size_t solve_every, std::size_t num_threads,
               std::optional<bool> in_rounds) {
    require_nonzeros(k, n_latents());
    require_equal(vectors.shape(1), dim(), "columns of vectors");
    require(solve_every >= 1, "solve_every is 0, expected at least 1");
    const std::size_t n = vectors.shape(0);
    return to_numpy(
        without_gil([&] { return shared_.pursue(vectors.data(), n, k, solve_every, num_threads, in_rounds); }), n, k);
  }

 private:
  std::size_t n_latents() const { return atoms_.shape(0); }
  std::size_t dim() const { return atoms_.shape(1); }

  Input<float, 2> atoms_;
  SharedDictionary shared_;
};

Codes top_k_codes(const Input<float, 2>& activations, std::size_t k, std::size_t num_threads) {
  const std::size_t n = activations.shape(0), n_latents = activations.shape(1);
  require_nonzeros(k, n_latents);
  return to_numpy(
      without_gil([&] { return compressae::top_k_codes(activations.data(), n, n_latents, k, num_threads); }), n, k);
}

}  // namespace

void bind_dictionary(nb::module_& m) {
  m.attr("MAX_DIM") = kMaxDim;
  m.attr("NEAR_BYTES") = RoughProjection::kNear;
  m.attr("MAX_LATENTS") = kMaxLatents;
  nb::class_<ProjectionBinding>(m, "Projection", "Products with atoms (n_latents, dim) of unit norm, kept as bytes.")
      .def(nb::init<const Input<float, 2>&>(), "atoms"_a.noconvert())
      .def("project", &ProjectionBinding::project, "vectors"_a.noconvert(), "mean"_a.noconvert().none(),
           "num_threads"_a,
           "Products of the directions of vectors (n, dim) with all atoms, (n, n_latents), and with a mean (dim), if\n"
           "any, (n, 1). Atoms that are multiples of bytes take one an entry, others two.")
      .def("entries", &ProjectionBinding::entries, "The atoms (n_latents, dim) rounded to bytes, the largest to 127.")
      .def_prop_ro("nbytes", &ProjectionBinding::nbytes);
  nb::class_<RoughProjectionBinding>(m, "RoughProjection", "The same to choose documents by, beside a projection.")
      .def(nb::init<const ProjectionBinding&>(), "exact"_a, nb::keep_alive<1, 2>())
      .def("project", &RoughProjectionBinding::project, "vectors"_a.noconvert(), "mean"_a.noconvert().none(),
           "num_threads"_a,
           "Products of vectors rounded to bytes, unless these have spikes, with atoms in bytes: off by about a\n"
           "hundredth of 1 / sqrt(dim). With more than 2 MiB of atoms without peaks, these are read to half a byte:\n"
           "off by about an eighth.")
      .def_prop_ro("nbytes", &RoughProjectionBinding::nbytes);
  nb::class_<DictionaryBinding>(m, "Dictionary", "A dictionary (n_latents, dim) of unit rows, which is borrowed.")
      .def(nb::init<Input<float, 2>>(), "atoms"_a.noconvert())
      .def("pursue", &DictionaryBinding::pursue, "vectors"_a.noconvert(), "k"_a, "solve_every"_a, "num_threads"_a,
           "in_rounds"_a.none() = nb::none(),
           "Codes of unit rows (n, dim) by orthogonal matching pursuit: (latents, values), (n, k). in_rounds says "
           "whether\n"
           "by rounds or by the Gram matrix of all atoms; None: by the number of latents.");
  m.def("top_k_codes", &top_k_codes, "activations"_a.noconvert(), "k"_a, "num_threads"_a,
        "The k largest absolute entries of each row, signed, sorted by latent: (latents, values), (n, k).");
}

}  // namespace compressae::bindings
