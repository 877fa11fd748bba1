#include "bindings/codes.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/families.hpp"
#include "codes/aligned.hpp"
#include "codes/norms.hpp"
#include "codes/packed.hpp"
#include "codes/rounding.hpp"
#include "search/search.hpp"

namespace compressae::bindings {

Hits ForwardPart::search(const Input<float, 2>& projections, std::size_t top, const Bitmap& bitmap,
                         std::size_t num_threads) const {
  require_equal(projections.shape(1), n_entries(), "columns of projections");
  const Scope scope =
      scope_of({{nullptr, codes_.get(), n_documents(), 0}}, n_entries(), bits_of(bitmap, n_documents()));
  return searched(projections.shape(0), top, [&](const Results& results) {
    search_dense(scope, projections.data(), projections.shape(0), num_threads, results);
  });
}

Hits ForwardPart::rescore(const Input<float, 2>& projections, const Input<std::int64_t, 2>& candidates, std::size_t top,
                          std::size_t num_threads) const {
  require_equal(projections.shape(1), n_entries(), "columns of projections");
  require_equal(candidates.shape(0), projections.shape(0), "rows of candidates");
  const auto n = static_cast<std::int64_t>(n_documents());
  for (std::size_t i = 0; i < candidates.size(); ++i)
    if (candidates.data()[i] >= n)
      throw std::invalid_argument("candidate " + std::to_string(candidates.data()[i]) + " is outside of " +
                                  std::to_string(n) + " documents");
  const std::vector<Part> parts{{nullptr, codes_.get(), n_documents(), 0}};
  return searched(projections.shape(0), top, [&](const Results& results) {
    search_candidates(parts, projections.data(), n_entries(), candidates.data(), projections.shape(0),
                      candidates.shape(1), num_threads, results);
  });
}

void ForwardPart::validate(std::size_t num_threads) const {
  without_gil([&] { codes_->validate(num_threads); });
}

Lengths ForwardPart::lengths_of(std::size_t n) {
  if (!arrays_.contains("norms")) return {};
  const auto norms = take<std::uint16_t, 1>(arrays_, "norms");
  require_equal(norms.shape(0), n, "length of 'norms'");
  nbytes_ += norms.nbytes();
  return {norms.data(), n};
}

namespace {

class AlignedCodes : public ForwardPart {
 public:
  AlignedCodes(Arrays arrays, std::size_t n_latents) : ForwardPart(std::move(arrays)) {
    require_latents(n_latents);
    const auto latents = take<std::uint16_t, 2>(arrays_, "latents");
    const auto values = take<std::int8_t, 2>(arrays_, "values");
    const auto scales = take<std::uint16_t, 1>(arrays_, "scales");
    const AlignedView view{latents.shape(0), latents.shape(1), latents.data(), values.data(), scales.data()};
    require(view.k >= 1, "codes have 0 nonzeros");
    require_equal(values.shape(0), view.n_documents, "rows of 'values'");
    require_equal(values.shape(1), view.k, "columns of 'values'");
    require_equal(scales.shape(0), view.n_documents, "length of 'scales'");
    codes_ = std::make_unique<ForwardOf<AlignedView>>(view, n_latents, lengths_of(view.n_documents));
    nbytes_ += latents.nbytes() + values.nbytes() + scales.nbytes();
  }
};

PackedLayout checked_layout(std::size_t n_latents, std::size_t k, std::size_t value_bits) {
  require_nonzeros(k, n_latents);
  require(value_bits >= 4 && value_bits <= 8, "value_bits is " + std::to_string(value_bits) + ", expected 4 to 8");
  return packed_layout(n_latents, k, value_bits);
}

// Value bits that levels, ascending within [0, 1], are the codebook of.
std::size_t value_bits_of(const Input<float, 1>& levels) {
  std::size_t value_bits = 4;
  while (value_bits < 8 && levels.shape(0) > std::size_t{1} << (value_bits - 1)) ++value_bits;
  require(levels.shape(0) == std::size_t{1} << (value_bits - 1),
          "length of levels is " + std::to_string(levels.shape(0)) + ", expected 8, 16, 32, 64 or 128");
  float previous = 0.0f;
  for (std::size_t i = 0; i < levels.shape(0); previous = levels.data()[i++])
    require(levels.data()[i] >= previous && levels.data()[i] <= 1.0f, "levels must ascend within [0, 1]");
  return value_bits;
}

class PackedCodes : public ForwardPart {
 public:
  PackedCodes(Arrays arrays, const Input<float, 1>& levels, std::size_t n_latents, std::size_t k)
      : ForwardPart(std::move(arrays)) {
    PackedLayout layout = checked_layout(n_latents, k, value_bits_of(levels));
    set_levels(layout, levels.data());
    const auto rows = take<std::uint8_t, 2>(arrays_, "rows");
    require_equal(rows.shape(1), layout.row_bytes, "columns of 'rows'");
    codes_ = std::make_unique<ForwardOf<PackedView>>(PackedView(layout, rows.data(), rows.shape(0)), n_latents,
                                                     lengths_of(rows.shape(0)));
    nbytes_ += rows.nbytes() + levels.nbytes();
  }
};

Output<float> code_norms(const Input<std::uint16_t, 2>& latents, const Input<float, 2>& values,
                         const Input<float, 2>& dictionary, std::size_t num_threads) {
  const std::size_t n = latents.shape(0), k = latents.shape(1), dim = dictionary.shape(1);
  require_equal(values.shape(0), n, "rows of values");
  require_equal(values.shape(1), k, "columns of values");
  require_below(latents, dictionary.shape(0));
  return to_numpy(without_gil([&] {
                    return compressae::code_norms(latents.data(), values.data(), n, k, dictionary.data(), dim,
                                                  num_threads);
                  }),
                  {n});
}

Output<std::uint8_t> quantize(const Input<std::uint16_t, 2>& latents, const Input<float, 2>& values,
                              const Input<std::uint16_t, 1>& scales, const Input<float, 1>& levels,
                              const std::optional<Input<float, 2>>& dictionary, std::size_t num_threads) {
  const std::size_t n = values.shape(0), k = values.shape(1);
  require_equal(latents.shape(0), n, "rows of latents");
  require_equal(latents.shape(1), k, "columns of latents");
  require_equal(scales.shape(0), n, "length of scales");
  value_bits_of(levels);
  if (dictionary) require_below(latents, dictionary->shape(0));
  const Quantizer quantizer(levels.data(), levels.shape(0));
  auto level_indices = without_gil([&] {
    return dictionary ? quantize_by_planes(quantizer, dictionary->data(), dictionary->shape(1), latents.data(),
                                           values.data(), scales.data(), n, k, num_threads)
                      : compressae::quantize(quantizer, values.data(), scales.data(), n, k, num_threads);
  });
  return to_numpy(std::move(level_indices), {n, k});
}

Output<std::uint8_t> pack_rows(const Input<std::uint16_t, 2>& latents, const Input<std::uint8_t, 2>& level_indices,
                               const Input<std::uint16_t, 1>& scales, std::size_t n_latents, std::size_t value_bits,
                               std::size_t num_threads) {
  const std::size_t n = latents.shape(0), k = latents.shape(1);
  const PackedLayout layout = checked_layout(n_latents, k, value_bits);
  require_equal(level_indices.shape(0), n, "rows of codes");
  require_equal(level_indices.shape(1), k, "columns of codes");
  require_equal(scales.shape(0), n, "length of scales");
  auto rows = without_gil([&] {
    return compressae::pack_rows(layout, n_latents, latents.data(), level_indices.data(), scales.data(), n,
                                 num_threads);
  });
  return to_numpy(std::move(rows), {n, layout.row_bytes});
}

std::tuple<Output<std::uint16_t>, Output<std::uint8_t>, Output<std::uint16_t>> unpack_rows(
    const Input<std::uint8_t, 2>& rows, std::size_t n_latents, std::size_t k, std::size_t value_bits,
    std::size_t num_threads) {
  const std::size_t n = rows.shape(0);
  const PackedLayout layout = checked_layout(n_latents, k, value_bits);
  require_equal(rows.shape(1), layout.row_bytes, "columns of rows");
  const PackedView packed(layout, rows.data(), n);
  UnpackedRows unpacked = without_gil([&] { return compressae::unpack_rows(packed, n_latents, num_threads); });
  return {to_numpy(std::move(unpacked.latents), {n, k}), to_numpy(std::move(unpacked.level_indices), {n, k}),
          to_numpy(std::move(unpacked.scales), {n})};
}

}  // namespace

void bind_codes(nb::module_& m) {
  m.def("code_norms", &code_norms, "latents"_a.noconvert(), "values"_a.noconvert(), "dictionary"_a.noconvert(),
        "num_threads"_a, "Norms of the reconstructions of codes (n, k) over a dictionary (n_latents, dim): (n,).");
  m.def("quantize", &quantize, "latents"_a.noconvert(), "values"_a.noconvert(), "scales"_a.noconvert(),
        "levels"_a.noconvert(), "dictionary"_a.noconvert().none(), "num_threads"_a,
        "Codes of values (n, k) relative to the half-precision scales (n,), whose sign bit marks short rows: a sign\n"
        "bit above the index of the nearest level. With a dictionary (n_latents, dim), values make up for what the\n"
        "rounding of others did to the reconstruction.");
  m.def("pack_rows", &pack_rows, "latents"_a.noconvert(), "codes"_a.noconvert(), "scales"_a.noconvert(), "n_latents"_a,
        "value_bits"_a, "num_threads"_a, "Latents and codes (n, k) and scales (n,) as packed rows (n, row_bytes).");
  m.def("unpack_rows", &unpack_rows, "rows"_a.noconvert(), "n_latents"_a, "k"_a, "value_bits"_a, "num_threads"_a,
        "What was given to pack_rows: (latents, codes, scales).");

  nb::class_<ForwardPart>(m, "Forward", "The forward part: a document's code, row by row.")
      .def("search", &ForwardPart::search, "projections"_a.noconvert(), "top"_a, "allowed"_a.noconvert().none(),
           "num_threads"_a, "Best documents by whole projections: (scores, rows), (n_queries, top).")
      .def("rescore", &ForwardPart::rescore, "projections"_a.noconvert(), "candidates"_a.noconvert(), "top"_a,
           "num_threads"_a, "Best of the candidate rows (-1: none): (scores, rows), (n_queries, top).")
      .def("validate", &ForwardPart::validate, "num_threads"_a,
           "Raises ValueError where a row is not of ascending latents and finite values.")
      .def("arrays", &ForwardPart::arrays)
      .def_prop_ro("nbytes", &ForwardPart::nbytes)
      .def_prop_ro("n_documents", &ForwardPart::n_documents)
      .def_prop_ro("k", &ForwardPart::k)
      .def_prop_ro("n_entries", &ForwardPart::n_entries, "Entries of projections: latents, and one for norms.");
  nb::class_<AlignedCodes, ForwardPart>(m, "AlignedCodes",
                                        "The aligned forward part: k latents and values a row, and maybe norms.")
      .def(nb::init<Arrays, std::size_t>(), "arrays"_a, "n_latents"_a);
  nb::class_<PackedCodes, ForwardPart>(m, "PackedCodes",
                                       "The packed forward part: row_bytes bytes a row, and maybe norms.")
      .def(nb::init<Arrays, const Input<float, 1>&, std::size_t, std::size_t>(), "arrays"_a, "levels"_a.noconvert(),
           "n_latents"_a, "k"_a);
}

}  // namespace compressae::bindings
