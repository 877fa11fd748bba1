#include "bindings/refiners.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "base/thread_pool.hpp"
#include "bindings/families.hpp"
#include "codes/residuals.hpp"
#include "dictionary/dictionary.hpp"

namespace compressae::bindings {

Output<float> RefinerPart::rescore(const Input<float, 2>& queries, const Input<float, 2>& scores,
                                   const Input<std::int64_t, 2>& rows, std::size_t num_threads) const {
  const std::size_t n_queries = queries.shape(0), width = rows.shape(1);
  require_equal(queries.shape(1), dim(), "columns of queries");
  require_equal(rows.shape(0), n_queries, "rows of 'rows'");
  require_equal(scores.shape(0), n_queries, "rows of scores");
  require_equal(scores.shape(1), width, "columns of scores");
  const auto n = static_cast<std::int64_t>(n_documents());
  for (std::size_t i = 0; i < rows.size(); ++i)
    if (rows.data()[i] >= n)
      throw std::invalid_argument("row " + std::to_string(rows.data()[i]) + " is outside of " + std::to_string(n) +
                                  " documents");
  std::vector<float> refined(scores.data(), scores.data() + scores.size());
  without_gil([&] {
    ThreadPool::instance().parallel_for(n_queries, num_threads, [&](std::size_t q) {
      std::vector<Hit> hits;
      std::vector<std::size_t> places;
      for (std::size_t i = q * width; i < (q + 1) * width; ++i)
        if (rows.data()[i] >= 0) {
          hits.push_back({refined[i], rows.data()[i]});
          places.push_back(i);
        }
      refiner_->rescore(queries.data() + q * dim(), hits);
      for (std::size_t i = 0; i < hits.size(); ++i) refined[places[i]] = hits[i].score;
    });
  });
  return to_numpy(std::move(refined), {n_queries, width});
}

namespace {

ResidualRows checked_form(std::size_t dim, std::size_t bits) {
  require(dim >= 1 && dim <= kMaxDim, "dim is " + std::to_string(dim) + ", expected 1 to " + std::to_string(kMaxDim));
  require(is_residual_bits(bits), "residual_bits is " + std::to_string(bits) + ", expected 1, 2, 3, 4 or 6");
  return ResidualRows(dim, bits);
}

class Residuals : public RefinerPart {
 public:
  Residuals(std::vector<Input<std::uint8_t, 2>> parts, std::size_t dim, std::size_t bits)
      : form_(checked_form(dim, bits)), parts_(std::move(parts)) {
    Runs<const std::uint8_t*> runs;
    for (const auto& rows : parts_) {
      require_equal(rows.shape(1), form_.row_bytes(), "columns of residual rows");
      runs.add(rows.data(), rows.shape(0));
    }
    runs_ = runs;
    refiner_ = std::make_unique<ResidualRefiner>(form_, std::move(runs));
  }

  // Throws where the scale of a row is not a finite number that is at least 0.
  void validate(std::size_t num_threads) const {
    without_gil([&] {
      for_each_row(runs_.size(), num_threads, [&](std::size_t row) {
        const auto [rows, number] = runs_.at(row);
        if (!is_positive_half(ResidualRows::scale(*rows + number * form_.row_bytes())))
          throw std::invalid_argument("row " + std::to_string(row) + " of the residual codes has no finite scale");
      });
    });
  }

 private:
  ResidualRows form_;
  std::vector<Input<std::uint8_t, 2>> parts_;
  Runs<const std::uint8_t*> runs_;
};

class Originals : public RefinerPart {
 public:
  // Vectors and their factor.
  using Segment = std::pair<nb::object, float>;

  Originals(std::vector<Segment> segments, std::size_t dim, std::optional<Input<std::int64_t, 1>> places,
            bool by_direction, bool distances)
      : segments_(std::move(segments)), places_(std::move(places)) {
    require(dim >= 1 && dim <= kMaxDim, "dim is " + std::to_string(dim) + ", expected 1 to " + std::to_string(kMaxDim));
    Runs<OriginalRefiner::Vectors> runs;
    for (const auto& [vectors, factor] : segments_) {
      Input<float, 2> singles;
      Input<std::uint16_t, 2> halves;
      if (nb::try_cast(vectors, singles, false)) {
        require_equal(singles.shape(1), dim, "columns of originals");
        runs.add({singles.data(), false, factor}, singles.shape(0));
      } else {
        require(nb::try_cast(vectors, halves, false),
                "originals must be C-contiguous float32, or float16 as uint16, (n, dim), aligned in memory");
        require_equal(halves.shape(1), dim, "columns of originals");
        runs.add({halves.data(), true, factor}, halves.shape(0));
      }
    }
    const std::size_t n = places_ ? places_->shape(0) : runs.size();
    require(!(by_direction && distances), "distances are not by direction");
    const auto wanted = by_direction ? OriginalRefiner::Score::kCosine
                        : distances  ? OriginalRefiner::Score::kDistance
                                     : OriginalRefiner::Score::kProduct;
    refiner_ = std::make_unique<OriginalRefiner>(dim, std::move(runs), places_ ? places_->data() : nullptr, n, wanted);
  }

 private:
  std::vector<Segment> segments_;
  std::optional<Input<std::int64_t, 1>> places_;
};

Output<std::uint8_t> residual_rows(const Input<float, 2>& targets, const Input<std::uint16_t, 2>& latents,
                                   const Input<float, 2>& values, const Input<float, 2>& dictionary, std::size_t bits,
                                   std::size_t num_threads) {
  const std::size_t n = targets.shape(0), k = latents.shape(1);
  const ResidualRows form = checked_form(targets.shape(1), bits);
  require_equal(dictionary.shape(1), targets.shape(1), "columns of the dictionary");
  require_equal(latents.shape(0), n, "rows of latents");
  require_equal(values.shape(0), n, "rows of values");
  require_equal(values.shape(1), k, "columns of values");
  require_below(latents, dictionary.shape(0));
  auto rows = without_gil([&] {
    return encode_residuals(form, targets.data(), latents.data(), values.data(), n, k, dictionary.data(), num_threads);
  });
  return to_numpy(std::move(rows), {n, form.row_bytes()});
}

Output<float> residual_vectors(const Input<std::uint8_t, 2>& rows, std::size_t dim, std::size_t bits,
                               std::size_t num_threads) {
  const ResidualRows form = checked_form(dim, bits);
  require_equal(rows.shape(1), form.row_bytes(), "columns of residual rows");
  auto vectors = without_gil([&] { return decode_residuals(form, rows.data(), rows.shape(0), num_threads); });
  return to_numpy(std::move(vectors), {rows.shape(0), dim});
}

}  // namespace

void bind_refiners(nb::module_& m) {
  m.def(
      "residual_row_bytes", [](std::size_t dim, std::size_t bits) { return checked_form(dim, bits).row_bytes(); },
      "dim"_a, "residual_bits"_a, "Bytes of a residual row.");
  m.def("residual_rows", &residual_rows, "targets"_a.noconvert(), "latents"_a.noconvert(), "values"_a.noconvert(),
        "dictionary"_a.noconvert(), "residual_bits"_a, "num_threads"_a,
        "Residual rows of targets (n, dim) whose codes are latents and values (n, k): (n, row_bytes). The code's\n"
        "reconstruction and the residual together get the norm of the target.");
  m.def("residual_vectors", &residual_vectors, "rows"_a.noconvert(), "dim"_a, "residual_bits"_a, "num_threads"_a,
        "Residuals that rows stand for: (n, dim).");
  nb::class_<RefinerPart>(m, "Refiner", "Stage three of a search: scores by what codes leave out.")
      .def("rescore", &RefinerPart::rescore, "queries"_a.noconvert(), "scores"_a.noconvert(), "rows"_a.noconvert(),
           "num_threads"_a,
           "Scores of rows (n_queries, width) in place of their sums over codes; that of row -1 stays.")
      .def_prop_ro("n_documents", &RefinerPart::n_documents);
  nb::class_<Residuals, RefinerPart>(m, "Residuals", "Adds the products of queries with residual codes.")
      .def(nb::init<std::vector<Input<std::uint8_t, 2>>, std::size_t, std::size_t>(), "parts"_a, "dim"_a,
           "residual_bits"_a)
      .def("validate", &Residuals::validate, "num_threads"_a,
           "Raises ValueError where the scale of a row is not finite and at least 0.");
  nb::class_<Originals, RefinerPart>(m, "Originals", "The products of queries with original vectors.")
      .def(
          nb::init<std::vector<Originals::Segment>, std::size_t, std::optional<Input<std::int64_t, 1>>, bool, bool>(),
          "segments"_a, "dim"_a, "places"_a.noconvert().none(), "by_direction"_a, "distances"_a = false,
          "Segments are vectors, float32, or float16 as uint16, (n, dim), and a factor of their products each.\n"
          "places: each document's row in them. With by_direction, products are divided by the norms of vectors; with\n"
          "distances, scores are squared distances from vectors times their factor, below 0.");
}

}  // namespace compressae::bindings
