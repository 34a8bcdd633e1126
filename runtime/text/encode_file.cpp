// encode_file.cpp - columns of a text file to token streams, by several threads.
//
// The file goes in rounds of blocks of lines: the threads encode one block each, then the
// blocks are written in order. The result does not depend on the number of threads, and memory
// holds one round (of gzip, the text besides).
#include "runtime/text/text_impl.h"

#include <system_error>
#include <thread>

extern "C" {
#include "runtime/data.h"
}

namespace {

constexpr int kLinesPerBlock = 4096;

struct Block {
    std::vector<absl::string_view> lines;
    std::vector<std::vector<int32_t>> ids, lengths; // one of each per column
    std::string error;
};

void encode_block(const lm_text *t, int columns, const int32_t *column, Block *block) {
    try {
        std::vector<int> sentence;
        for (int c = 0; c < columns; c++) {
            auto &ids = block->ids[c], &lengths = block->lengths[c];
            ids.clear();
            lengths.clear();
            for (const auto line : block->lines) {
                const auto done = t->processor.Encode(lm::field(line, column[c]), &sentence);
                if (!done.ok()) {
                    block->error = lm::reason(done);
                    return;
                }
                ids.insert(ids.end(), sentence.begin(), sentence.end());
                lengths.push_back(static_cast<int32_t>(sentence.size()));
            }
        }
    } catch (const std::exception &e) {
        block->error = e.what();
    }
}

// A block per thread; where the system gives no thread, here.
void encode_round(const lm_text *t, int columns, const int32_t *column,
                  std::vector<Block> *blocks, size_t used) {
    std::vector<std::thread> team;
    team.reserve(used); // from here on, only starting a thread can throw
    for (size_t b = 1; b < used; b++) {
        Block *block = &(*blocks)[b];
        try {
            team.emplace_back(encode_block, t, columns, column, block);
        } catch (const std::system_error &) {
            encode_block(t, columns, column, block);
        }
    }
    encode_block(t, columns, column, &(*blocks)[0]);
    for (auto &thread : team) thread.join();
}

struct Writers { // abandoned unless finished
    std::vector<lm_stream_writer *> each;
    ~Writers() {
        for (auto *w : each) lm_stream_abandon(w);
    }
};

// Fills the blocks with the lines that come next; how many blocks have some.
size_t deal_lines(absl::string_view *rest, std::vector<Block> *blocks) {
    size_t used = 0;
    for (auto &block : *blocks) {
        block.lines.clear();
        while (!rest->empty() && block.lines.size() < kLinesPerBlock)
            block.lines.push_back(lm::next_line(rest));
        used += !block.lines.empty();
    }
    return used;
}

int write_round(const std::vector<Block> &blocks, size_t used, Writers *writers) {
    for (size_t b = 0; b < used; b++) {
        if (!blocks[b].error.empty())
            return lm_fail(LM_EINTERNAL, "text: encode: %s", blocks[b].error.c_str());
        for (size_t c = 0; c < writers->each.size(); c++) {
            const int st = lm_stream_append(writers->each[c], blocks[b].ids[c].data(),
                                            blocks[b].lengths[c].data(),
                                            static_cast<int64_t>(blocks[b].lengths[c].size()));
            if (st != LM_OK) return st;
        }
    }
    return LM_OK;
}

int encode_file(const lm_text *t, const char *path, int columns, const int32_t *column,
                const char *const *stream, int threads, int64_t *lines) {
    lm::TextFile file;
    int st = file.open(path);
    Writers writers;
    for (int c = 0; st == LM_OK && c < columns; c++) {
        lm_stream_info about = {};
        about.vocab = lm_text_size(t);
        about.column = column[c];
        about.model = t->hash;
        about.source_bytes = file.bytes();
        about.source_time = file.time();
        lm_stream_writer *writer = nullptr;
        st = lm_stream_create(stream[c], &about, &writer);
        if (st == LM_OK) writers.each.push_back(writer);
    }

    std::vector<Block> blocks(static_cast<size_t>(threads));
    for (auto &block : blocks) {
        block.ids.resize(static_cast<size_t>(columns));
        block.lengths.resize(static_cast<size_t>(columns));
    }
    auto rest = file.text();
    int64_t count = 0;
    while (st == LM_OK && !rest.empty()) {
        const size_t used = deal_lines(&rest, &blocks);
        encode_round(t, columns, column, &blocks, used);
        st = write_round(blocks, used, &writers);
        for (size_t b = 0; b < used; b++) count += static_cast<int64_t>(blocks[b].lines.size());
    }
    for (auto &writer : writers.each) {
        if (st != LM_OK) break;
        st = lm_stream_finish(writer);
        writer = nullptr;
    }
    if (st == LM_OK) *lines = count;
    return st;
}

} // namespace

int lm_text_encode_file(const lm_text *t, const char *path, int columns, const int32_t *column,
                        const char *const *stream, int threads, int64_t *lines) {
    if (threads < 1 || threads > 256) return lm_fail(LM_EARG, "text: %d threads", threads);
    return lm::guarded(
        path, [&] { return encode_file(t, path, columns, column, stream, threads, lines); });
}
