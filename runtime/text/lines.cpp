// lines.cpp - a text file as lines and fields, without copying it where it is not gzip.
#include "runtime/text/text_impl.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

namespace lm {

// Unpacks a gzip file, of several members too, as `gzip -d` does.
static int unpack(const char *path, std::string *out) {
    gzFile file = gzopen(path, "rb");
    if (!file) return lm_fail(LM_EIO, "%s: %s", path, std::strerror(errno));
    int got = 0, code = Z_OK;
    try {
        std::vector<char> buffer(1 << 18);
        while ((got = gzread(file, buffer.data(), static_cast<unsigned>(buffer.size()))) > 0)
            out->append(buffer.data(), static_cast<size_t>(got));
    } catch (...) {
        gzclose(file);
        throw;
    }
    const std::string said = gzerror(file, &code); // a file cut off is an error at its end
    gzclose(file);
    if (got < 0 || code < 0) return lm_fail(LM_EIO, "%s: damaged: %s", path, said.c_str());
    return LM_OK;
}

int TextFile::open(const char *path) {
    const int fd = ::open(path, O_RDONLY | O_CLOEXEC);
    struct stat about;
    if (fd < 0 || fstat(fd, &about) != 0) {
        const int st = lm_fail(LM_EIO, "%s: %s", path, std::strerror(errno));
        if (fd >= 0) ::close(fd);
        return st;
    }
    int st = LM_OK;
    time_ = about.st_mtim.tv_sec * INT64_C(1000000000) + about.st_mtim.tv_nsec;
    if (!S_ISREG(about.st_mode)) {
        st = lm_fail(LM_EIO, "%s: not a file", path);
    } else if (about.st_size > 0) {
        bytes_ = static_cast<size_t>(about.st_size);
        void *map = mmap(nullptr, bytes_, PROT_READ, MAP_PRIVATE, fd, 0);
        mapped_ = map != MAP_FAILED;
        if (mapped_) map_ = static_cast<const char *>(map);
        else st = lm_fail(LM_EIO, "%s: %s", path, std::strerror(errno));
    }
    ::close(fd);
    if (st == LM_OK && bytes_ > 2 && std::memcmp(map_, "\x1f\x8b", 2) == 0) {
        unmap();
        packed_ = true;
        st = unpack(path, &unpacked_);
    }
    return st;
}

void TextFile::unmap() {
    if (mapped_) munmap(const_cast<char *>(map_), bytes_);
    mapped_ = false;
}

TextFile::~TextFile() { unmap(); }

absl::string_view next_line(absl::string_view *text) {
    const auto *end = static_cast<const char *>(std::memchr(text->data(), '\n', text->size()));
    size_t length = end ? static_cast<size_t>(end - text->data()) : text->size();
    absl::string_view line(text->data(), length);
    text->remove_prefix(end ? length + 1 : length);
    if (!line.empty() && line[line.size() - 1] == '\r') line.remove_suffix(1);
    return line;
}

absl::string_view field(absl::string_view line, int column) {
    for (int i = 0; column >= 0; i++) {
        const auto *tab =
            static_cast<const char *>(std::memchr(line.data(), '\t', line.size()));
        const size_t length = tab ? static_cast<size_t>(tab - line.data()) : line.size();
        if (i == column) return {line.data(), length};
        if (!tab) return {};
        line.remove_prefix(length + 1);
    }
    return line;
}

int64_t count_lines(absl::string_view text) {
    int64_t lines = 0;
    for (; !text.empty(); lines++) next_line(&text);
    return lines;
}

} // namespace lm
