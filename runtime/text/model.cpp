// model.cpp - opening a SentencePiece model, and text to ids and back.
//
// SentencePiece takes a model file cut off between two records for a whole one, so the file is
// walked first: it is a protobuf message whose records must end where the file does, and which
// must have pieces (1), a trainer's spec (2) and a normalizer's spec (3).
#include "runtime/text/text_impl.h"

#include <cerrno>
#include <cstdio>
#include <cstring>

namespace {

bool read_varint(const std::string &bytes, size_t *at, uint64_t *value) {
    *value = 0;
    for (unsigned shift = 0; shift < 64 && *at < bytes.size(); shift += 7) {
        const auto byte = static_cast<unsigned char>(bytes[(*at)++]);
        *value |= static_cast<uint64_t>(byte & 0x7f) << shift;
        if (!(byte & 0x80)) return true;
    }
    return false;
}

bool whole_model(const std::string &bytes) {
    unsigned seen = 0;
    for (size_t at = 0; at < bytes.size();) {
        uint64_t key, length;
        if (!read_varint(bytes, &at, &key) || (key & 7) != 2) return false; // all are messages
        if (!read_varint(bytes, &at, &length) || length > bytes.size() - at) return false;
        at += length;
        if (key >> 3 < 8) seen |= 1u << (key >> 3);
    }
    return (seen & 0xe) == 0xe;
}

uint64_t fnv1a(const std::string &bytes) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (const char c : bytes) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
    return hash;
}

int read_file(const char *path, std::string *bytes) {
    FILE *file = std::fopen(path, "rbe");
    if (!file) return lm_fail(LM_EIO, "%s: %s", path, std::strerror(errno));
    char block[65536];
    for (size_t n; (n = std::fread(block, 1, sizeof block, file)) > 0;) bytes->append(block, n);
    const bool failed = std::ferror(file) != 0;
    const int why = errno;
    std::fclose(file);
    return failed ? lm_fail(LM_EIO, "%s: %s", path, std::strerror(why)) : LM_OK;
}

} // namespace

int lm_text_open(const char *path, lm_text **out) {
    return lm::guarded(path, [&] {
        auto t = std::make_unique<lm_text>();
        std::string bytes;
        const int st = read_file(path, &bytes);
        if (st != LM_OK) return st;
        if (!whole_model(bytes))
            return lm_fail(LM_EIO, "%s: not a SentencePiece model, or not the whole of one",
                           path);
        const auto loaded = t->processor.LoadFromSerializedProto(bytes);
        if (!loaded.ok())
            return lm_fail(LM_EIO, "%s: SentencePiece: %s", path, lm::reason(loaded).c_str());
        t->hash = fnv1a(bytes);
        *out = t.release();
        return static_cast<int>(LM_OK);
    });
}

void lm_text_close(lm_text *t) { delete t; }

int lm_text_size(const lm_text *t) { return t->processor.GetPieceSize(); }

uint64_t lm_text_hash(const lm_text *t) { return t->hash; }

int lm_text_special(const lm_text *t, int which) {
    switch (which) {
    case LM_TEXT_PAD: return t->processor.pad_id();
    case LM_TEXT_UNK: return t->processor.unk_id();
    case LM_TEXT_BOS: return t->processor.bos_id();
    case LM_TEXT_EOS: return t->processor.eos_id();
    default: return -1;
    }
}

int lm_text_id(const lm_text *t, const char *piece, int64_t bytes) {
    const std::string wanted(piece, static_cast<size_t>(bytes));
    const int id =
        t->processor.PieceToId(wanted); // the unknown piece's, if there is no such piece
    return id >= 0 && id < lm_text_size(t) && t->processor.IdToPiece(id) == wanted ? id : -1;
}

int lm_text_piece(const lm_text *t, int id, const char **piece, int64_t *bytes) {
    if (id < 0 || id >= lm_text_size(t))
        return lm_fail(LM_EARG, "text: id %d, but the vocabulary has %d pieces", id,
                       lm_text_size(t));
    const std::string &found = t->processor.IdToPiece(id);
    *piece = found.data();
    *bytes = static_cast<int64_t>(found.size());
    return LM_OK;
}

int lm_text_encode(lm_text *t, const char *text, int64_t bytes, const int32_t **ids,
                   int64_t *count) {
    return lm::guarded("text: encode", [&] {
        const auto done = t->processor.Encode({text, static_cast<size_t>(bytes)}, &t->ids);
        if (!done.ok())
            return lm_fail(LM_EINTERNAL, "text: encode: %s", lm::reason(done).c_str());
        *ids = t->ids.data();
        *count = static_cast<int64_t>(t->ids.size());
        return static_cast<int>(LM_OK);
    });
}

int lm_text_decode(lm_text *t, const int32_t *ids, int64_t count, const char **text,
                   int64_t *bytes) {
    return lm::guarded("text: decode", [&] {
        const int size = lm_text_size(t);
        for (int64_t i = 0; i < count; i++)
            if (ids[i] < 0 || ids[i] >= size)
                return lm_fail(LM_EARG,
                               "text: decode: id %d at %lld, but the vocabulary has %d pieces",
                               ids[i], static_cast<long long>(i), size);
        const auto done = t->processor.Decode(std::vector<int>(ids, ids + count), &t->text);
        if (!done.ok())
            return lm_fail(LM_EINTERNAL, "text: decode: %s", lm::reason(done).c_str());
        *text = t->text.data();
        *bytes = static_cast<int64_t>(t->text.size());
        return static_cast<int>(LM_OK);
    });
}
