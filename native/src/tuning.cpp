#include "tuning.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <set>
#include <sstream>
#include <vector>

#include "digest.h"
#include "failure.h"
#include "files.h"

namespace emq {
namespace {

constexpr const char *first_line = "emqdeploy kernels 1";
constexpr const char *prefix = "kernels-", *ending = ".txt";
constexpr int64_t largest_file = 1 << 20, most_described = 1 << 16;
constexpr size_t most_entries = 4096, longest_line = 240;

std::string folder() {
    const char *cache = std::getenv("XDG_CACHE_HOME"), *home = std::getenv("HOME");
    if (cache != nullptr && *cache == '/') return std::string(cache) + "/emqdeploy";
    if (home != nullptr && *home == '/') return std::string(home) + "/.cache/emqdeploy";
    return "";
}

// What the system says about the kinds of cores that there are; empty where it says nothing.
std::string processor() {
    static const std::set<std::string> telling = {
        "model name", "cpu family", "model", "stepping", "cache size",
        "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision"};
    std::string text;
    std::FILE *file = std::fopen("/proc/cpuinfo", "re");
    if (file == nullptr) return text;
    char line[512];
    std::set<std::string> found;
    for (int64_t read = 0; read < most_described && std::fgets(line, sizeof line, file) != nullptr;) {
        const std::string whole = line;
        read += static_cast<int64_t>(whole.size());
        const size_t colon = whole.find(':');
        if (colon == std::string::npos || colon == 0) continue;
        const size_t blank = whole.find_last_not_of(" \t", colon - 1);
        if (blank == std::string::npos) continue;
        if (telling.count(whole.substr(0, blank + 1)) > 0) found.insert(whole);
    }
    std::fclose(file);
    for (const std::string &one : found) text += one;
    return text;
}

bool is_plain(const std::string &text) {
    for (const char c : text) {
        if (c < ' ' || c > '~') return false;
    }
    return !text.empty() && text.size() <= longest_line;
}

// The entries of a file with this header; none where anything about it is wrong.
std::map<std::string, std::string> read_entries(const std::string &path, const std::string &header) {
    std::map<std::string, std::string> entries;
    try {
        const std::vector<uint8_t> bytes = read_regular(path, largest_file, O_NOFOLLOW, "");
        std::istringstream text(std::string(bytes.begin(), bytes.end()));
        std::string line;
        for (const std::string &expected : {std::string(first_line), header}) {
            if (!std::getline(text, line) || line != expected) return {};
        }
        while (std::getline(text, line)) {
            const size_t equals = line.find(" = ");
            if (!is_plain(line) || equals == std::string::npos || entries.size() == most_entries) return {};
            entries[line.substr(0, equals)] = line.substr(equals + 3);
        }
    } catch (const Failure &) {
        return {};
    }
    return entries;
}

bool write_all(int file, const std::string &text) {
    for (size_t done = 0; done < text.size();) {
        const ssize_t taken = write(file, text.data() + done, text.size() - done);
        if (taken < 0 && errno == EINTR) continue;
        if (taken <= 0) return false;
        done += static_cast<size_t>(taken);
    }
    return true;
}

// Whole or not at all: others may read it meanwhile.
void replace(const std::string &path, const std::string &text) {
    static std::atomic<int> number{0};
    const std::string part = path + "." + std::to_string(getpid()) + "." + std::to_string(number++);
    const int file = open(part.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (file < 0) return;
    const bool written = write_all(file, text);
    if (close(file) != 0 || !written || rename(part.c_str(), path.c_str()) != 0) unlink(part.c_str());
}

}  // namespace

Tuning::Tuning(const Kernels &kernels) {
    const std::string place = folder(), about = processor();
    if (place.empty() || about.empty()) return;
    // Another compiler makes other kernels of the same source.
    const std::string whole = about + EMQ_LIBRARY_VERSION + "\n" + __VERSION__ + "\n" + kernels.name;
    header_ = blake2b_128({{reinterpret_cast<const uint8_t *>(whole.data()), whole.size()}});
    path_ = place + "/" + prefix + header_ + ending;
    known_ = read_entries(path_, header_);
}

std::string Tuning::find(const std::string &numbers) const {
    const auto found = known_.find(numbers);
    return found == known_.end() ? "" : found->second;
}

void Tuning::note(const std::string &numbers, const std::string &method) {
    if (is_plain(numbers + " = " + method)) known_[numbers] = fresh_[numbers] = method;
}

void Tuning::save() const noexcept {
    if (path_.empty() || fresh_.empty()) return;
    try {
        std::map<std::string, std::string> entries = read_entries(path_, header_);
        if (entries.size() + fresh_.size() > most_entries) entries.clear();
        for (const auto &one : fresh_) entries[one.first] = one.second;
        std::string text = std::string(first_line) + "\n" + header_ + "\n";
        for (const auto &one : entries) text += one.first + " = " + one.second + "\n";
        const std::string place = path_.substr(0, path_.rfind('/'));
        mkdir(place.substr(0, place.rfind('/')).c_str(), 0700);
        mkdir(place.c_str(), 0700);
        if (static_cast<int64_t>(text.size()) <= largest_file) replace(path_, text);
    } catch (const std::exception &) {
        // Without memory for it nothing is kept.
    }
}

bool forget_tuning() {
    const std::string place = folder();
    DIR *const all = place.empty() ? nullptr : opendir(place.c_str());
    if (all == nullptr) return true;
    std::vector<std::string> ours;
    while (const dirent *one = readdir(all)) {
        if (std::strncmp(one->d_name, prefix, std::strlen(prefix)) == 0) ours.emplace_back(one->d_name);
    }
    closedir(all);
    bool gone = true;
    for (const std::string &name : ours) gone = unlink((place + "/" + name).c_str()) == 0 && gone;
    return gone;
}

}  // namespace emq
