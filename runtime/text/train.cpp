// train.cpp - training a SentencePiece model on a sample of text files.
//
// Each column of each file gives a share of the sample; which of its lines, Knuth's algorithm S
// says (TAOCP 3.4.2): with `need` to choose of the `left` lines to come, take the next with
// probability need / left, by a counter-based draw. Symbols are SentencePiece's "control"
// pieces: a sentence that happens to contain "<mask>" is spelled out, never taken for the
// symbol.
#include "runtime/text/text_impl.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <unistd.h>
#include <unordered_map>

#include <sentencepiece_trainer.h>

extern "C" {
#include "kernels/philox.h"
}

namespace {

using Sentences = std::vector<std::string>;

class Feed : public sentencepiece::SentenceIterator {
  public:
    explicit Feed(const Sentences &all) : all_(all) {}
    bool done() const override { return at_ >= all_.size(); }
    void Next() override { at_++; }
    const std::string &value() const override { return all_[at_]; }
    sentencepiece::util::Status status() const override { return {}; }

  private:
    const Sentences &all_;
    size_t at_ = 0;
};

void keep(absl::string_view sentence, Sentences *out) {
    if (!sentence.empty()) out->emplace_back(sentence.data(), sentence.size());
}

// How many of each column's lines[i] to take: shares lines[i]^(1/temperature) of the sample,
// where what a short column cannot give goes to the others.
std::vector<int64_t> share_sample(const std::vector<int64_t> &lines, int64_t sample,
                                  double temperature) {
    std::vector<int64_t> take(lines.size(), 0);
    std::vector<size_t> order(lines.size());
    double weights = 0;
    for (size_t i = 0; i < lines.size(); i++) {
        order[i] = i;
        weights += std::pow(static_cast<double>(lines[i]), 1 / temperature);
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return lines[a] < lines[b]; });
    for (const size_t i : order) { // the shortest first: only they can fall short
        const double weight = std::pow(static_cast<double>(lines[i]), 1 / temperature);
        const double part = weights > 0 ? static_cast<double>(sample) * weight / weights : 0;
        take[i] = std::min({lines[i], sample, static_cast<int64_t>(std::llround(part))});
        sample -= take[i];
        weights -= weight;
    }
    return take;
}

int sample_columns(const lm_text_training &how, Sentences *out) {
    std::vector<lm::TextFile> files(static_cast<size_t>(how.columns));
    std::vector<int64_t> lines;
    for (size_t i = 0; i < files.size(); i++) {
        const int st = files[i].open(how.path[i]);
        if (st != LM_OK) return st;
        lines.push_back(lm::count_lines(files[i].text()));
    }
    const auto take = share_sample(lines, how.sample, how.temperature);
    for (size_t i = 0; i < files.size(); i++) {
        auto text = files[i].text();
        int64_t need = take[i];
        for (int64_t left = lines[i]; need > 0; left--) {
            const auto line = lm::next_line(&text);
            const uint64_t draw =
                lm_philox_at(static_cast<uint64_t>(how.seed), i, static_cast<uint64_t>(left));
            if (static_cast<int64_t>((draw * static_cast<uint64_t>(left)) >> 32) >= need)
                continue;
            keep(lm::field(line, how.column[i]), out);
            need--;
        }
    }
    return LM_OK;
}

int save(const std::string &bytes, const char *path) {
    const std::string aside = std::string(path) + "." + std::to_string(getpid()) + ".part";
    FILE *file = std::fopen(aside.c_str(), "wbe");
    bool ok = file && std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size() &&
              std::fflush(file) == 0 && fsync(fileno(file)) == 0;
    if (file && std::fclose(file) != 0) ok = false;
    if (ok && std::rename(aside.c_str(), path) == 0) return LM_OK;
    const int st = lm_fail(LM_EIO, "%s: cannot write it: %s", path, std::strerror(errno));
    std::remove(aside.c_str());
    return st;
}

int comma_separated(absl::string_view symbols, std::string *out) {
    while (!symbols.empty()) {
        const auto symbol = lm::next_line(&symbols);
        const std::string text(symbol.data(), symbol.size());
        if (text.empty() || text.find_first_of(",\" ") != std::string::npos)
            return lm_fail(LM_EARG,
                           "text: symbol '%s' is empty or has a comma, a quote or a space",
                           text.c_str());
        if (!out->empty()) *out += ',';
        *out += text;
    }
    return LM_OK;
}

int train(const lm_text_training &how, int64_t *count) {
    std::string symbols;
    int st = comma_separated(how.symbols ? how.symbols : "", &symbols);
    Sentences sentences;
    if (st == LM_OK && !how.lines) st = sample_columns(how, &sentences);
    if (st != LM_OK) return st;
    if (how.lines)
        for (absl::string_view text(how.lines, static_cast<size_t>(how.lines_bytes));
             !text.empty();)
            keep(lm::next_line(&text), &sentences);
    if (sentences.empty())
        return lm_fail(LM_EARG, "text: train: there is no sentence to train on");

    std::unordered_map<std::string, std::string> options = {
        {"model_type", how.type},
        {"vocab_size", std::to_string(how.vocab_size)},
        {"character_coverage", std::to_string(how.coverage)},
        {"normalization_rule_name", how.normalization},
        {"byte_fallback", how.byte_fallback ? "true" : "false"},
        {"num_threads", std::to_string(how.threads)},
        {"pad_id", "0"},
        {"unk_id", "1"},
        {"bos_id", "2"},
        {"eos_id", "3"},
        {"minloglevel", "2"},
    };
    if (!symbols.empty()) options["control_symbols"] = symbols;
    Feed feed(sentences);
    std::string model;
    const auto done = sentencepiece::SentencePieceTrainer::Train(options, &feed, &model);
    if (!done.ok()) return lm_fail(LM_EARG, "text: train: %s", lm::reason(done).c_str());
    st = save(model, how.model);
    if (st == LM_OK) *count = static_cast<int64_t>(sentences.size());
    return st;
}

} // namespace

int lm_text_train(const lm_text_training *how, int64_t *sentences) {
    if (!(how->temperature > 0))
        return lm_fail(LM_EARG, "text: train: temperature %g", how->temperature);
    return lm::guarded("text: train", [&] { return train(*how, sentences); });
}
