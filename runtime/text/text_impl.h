// text_impl.h - what the files of runtime/text share.
#ifndef LM_TEXT_IMPL_H
#define LM_TEXT_IMPL_H

#include <exception>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include <sentencepiece_processor.h>

#include "runtime/text/text.h"

struct lm_text {
    sentencepiece::SentencePieceProcessor processor;
    uint64_t hash = 0;
    std::vector<int> ids; // of the last encode
    std::string text;     // of the last decode
};

namespace lm {

// Runs what may throw; a C++ exception becomes a status.
template <typename Work> int guarded(const char *what, Work work) {
    try {
        return work();
    } catch (const std::bad_alloc &) {
        return lm_fail(LM_EOOM, "%s: no memory", what);
    } catch (const std::exception &e) {
        return lm_fail(LM_EINTERNAL, "%s: %s", what, e.what());
    }
}

// SentencePiece's sentence without the source line and the condition it puts before it.
inline std::string reason(const sentencepiece::util::Status &status) {
    const std::string whole = status.ToString();
    const size_t at = whole.rfind("] ");
    std::string said = at == std::string::npos ? whole : whole.substr(at + 2);
    return said.empty() ? whole : said;
}

// A text file: mapped, or where it is gzip, unpacked into memory. Lines end with \n, and a \r
// before it belongs to the end.
class TextFile {
  public:
    TextFile() = default;
    TextFile(const TextFile &) = delete;
    TextFile &operator=(const TextFile &) = delete;
    ~TextFile();
    int open(const char *path);
    absl::string_view text() const {
        return packed_ ? absl::string_view(unpacked_) : absl::string_view(map_, bytes_);
    }
    int64_t bytes() const { return static_cast<int64_t>(bytes_); } // on disk
    int64_t time() const { return time_; }                         // of the last change, in ns

  private:
    void unmap();
    const char *map_ = "";
    size_t bytes_ = 0;
    int64_t time_ = 0;
    bool mapped_ = false, packed_ = false;
    std::string unpacked_;
};

// Takes the first line off `text`.
absl::string_view next_line(absl::string_view *text);

// Column of a tab-separated line, from 0; -1 is the whole line. Empty if it is not there.
absl::string_view field(absl::string_view line, int column);

int64_t count_lines(absl::string_view text);

} // namespace lm

#endif
