#include "arguments.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace keras_rtrl {
namespace {

const char* Word(char dim) {
  switch (dim) {
    case 'B': return "batch";
    case 'T': return "time";
    case 'D': return "inputs";
    case 'N': return "units";
    case 'K': return "losses";
    case 'W': return "gates * units";
    case 'g': return "stored gates";
    case 'm': return "components";
    case 'P': return "unit parameters";
    default: return "local derivatives";
  }
}

std::string Text(absl::Span<const int64_t> shape) {
  const auto entry = [](std::string* out, int64_t size) {
    absl::StrAppend(out, size == Dims::kUnknown ? "?" : absl::StrCat(size));
  };
  return absl::StrCat("[", absl::StrJoin(shape, ", ", entry), "]");
}

}  // namespace

Dims::Dims(const keras_rtrl_cell& cell) : cell_(cell) {
  std::fill(std::begin(values_), std::end(values_), kUnknown);
  const int m = cell.components;
  Set('g', cell.stored);
  Set('m', m);
  Set('P', cell.parameters);
  Set('L', m * m + cell.stored * m + cell.parameters * m);
}

absl::Status Dims::Match(const Argument& argument, absl::Span<const int64_t> shape) {
  const size_t rank = std::strlen(argument.dims);
  if (shape.size() != rank) return Mismatch(argument, shape);
  for (size_t i = 0; i < rank; ++i) {
    const int64_t want = (*this)[argument.dims[i]], got = shape[i];
    if (got == kUnknown) continue;
    if (want == kUnknown ? argument.dims[i] == 'W' && got % cell_.gates != 0 : got != want) {
      return Mismatch(argument, shape);
    }
  }
  for (size_t i = 0; i < rank; ++i) {
    if (shape[i] == kUnknown) continue;
    Set(argument.dims[i], shape[i]);
    if (argument.dims[i] == 'N') Set('W', cell_.gates * shape[i]);
    if (argument.dims[i] == 'W') Set('N', shape[i] / cell_.gates);
  }
  return absl::OkStatus();
}

absl::Status Dims::Mismatch(const Argument& argument, absl::Span<const int64_t> shape) const {
  std::vector<const char*> words;
  std::vector<int64_t> want;
  for (const char* dim = argument.dims; *dim; ++dim) {
    words.push_back(Word(*dim));
    want.push_back((*this)[*dim]);
  }
  return absl::InvalidArgumentError(absl::StrCat(argument.name, " must have shape [", absl::StrJoin(words, ", "), "] = ",
                                                 Text(want), " for cell ", cell_.name, ", got ", Text(shape), "."));
}

int Dims::CountOf(const Argument& argument) const {
  switch (argument.count) {
    case Count::kComponents: return cell_.components;
    case Count::kParameters: return cell_.parameters;
    default: return 1;
  }
}

absl::Status Dims::MatchCount(const Argument& argument, int count) const {
  const int want = CountOf(argument);
  const bool optional = argument.count == Count::kOptional;
  if (count == want || (optional && count == 0)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(argument.name, " must be ", optional ? "at most " : "", want,
                                                 " tensors for cell ", cell_.name, ", got ", count, "."));
}

absl::Status FindCell(const std::string& name, int* cell) {
  *cell = keras_rtrl_find_cell(name.c_str());
  if (*cell >= 0) return absl::OkStatus();
  std::vector<const char*> names;
  for (int i = 0; i < keras_rtrl_cells(); ++i) names.push_back(keras_rtrl_cell_info(i)->name);
  return absl::InvalidArgumentError(
      absl::StrCat("cell must be one of ", absl::StrJoin(names, ", "), ", got '", name, "'."));
}

}  // namespace keras_rtrl
