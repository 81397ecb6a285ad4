#include "files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <map>

#include "digest.h"
#include "failure.h"
#include "json.h"

namespace emq {

std::vector<uint8_t> read_regular(const std::string &path, int64_t most, int flags, const char *remedy) {
    struct Descriptor {
        int number;
        ~Descriptor() {
            if (number >= 0) close(number);
        }
    };
    const auto fail = [&](const std::string &why) {
        throw Failure("cannot read " + path + ": " + why + "; " + remedy);
    };
    const Descriptor file{open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC | flags)};
    struct stat about;
    if (file.number < 0 || fstat(file.number, &about) != 0) fail(std::strerror(errno));
    if (!S_ISREG(about.st_mode)) fail(S_ISDIR(about.st_mode) ? "it is a directory" : "it is not a regular file");
    if (about.st_size > most) {
        fail("it has " + std::to_string(about.st_size) + " bytes, at most " + std::to_string(most) + " are read");
    }
    std::vector<uint8_t> bytes(static_cast<size_t>(about.st_size));
    for (size_t done = 0; done < bytes.size();) {
        const ssize_t taken = read(file.number, bytes.data() + done, bytes.size() - done);
        if (taken < 0 && errno == EINTR) continue;
        if (taken < 0) fail(std::strerror(errno));
        if (taken == 0) fail("it became shorter while it was read");
        done += static_cast<size_t>(taken);
    }
    return bytes;
}

namespace {

constexpr int64_t schema = 2;
constexpr int64_t largest_text = 64 << 20, largest_file = INT32_MAX;
constexpr const char *manifest_name = "manifest.json", *export_again = "export again";

bool is_there(const std::string &path) {
    struct stat found;
    return stat(path.c_str(), &found) == 0;
}

std::string real(const std::string &path, const char *remedy) {
    char *found = realpath(path.c_str(), nullptr);
    if (found == nullptr) throw Failure("cannot read " + path + ": " + std::strerror(errno) + "; " + remedy);
    const std::string copy = found;
    std::free(found);
    return copy;
}

struct Manifest {
    int64_t schema = -1;
    std::string checkpoint;
    std::map<std::string, std::string> hashes;
};

Manifest read_manifest(const std::string &path) {
    const std::vector<uint8_t> bytes =
        read_regular(path, largest_text, 0, "name the directory that emqdeploy export wrote");
    Manifest manifest;
    try {
        Json json({bytes.data(), bytes.size()});
        json.object([&](const std::string &key) {
            if (key == "schema") {
                manifest.schema = json.whole(0, INT_MAX);
            } else if (key == "checkpoint") {
                if (!json.is_null()) manifest.checkpoint = json.name();
            } else if (key == "files") {
                json.object([&](const std::string &name) {
                    json.record({{"sha256", true, [&] { manifest.hashes[name] = json.line(); }},
                                 {"size_bytes", true, [&] { json.whole(0, INT64_MAX / 2); }}});
                });
            } else {
                json.skip();
            }
        });
        json.end();
    } catch (const Failure &failure) {
        throw Failure(path + " is damaged (" + failure.what() + "); " + export_again);
    }
    return manifest;
}

File read_from_bundle(const std::string &directory) {
    const std::string path = directory + "/" + manifest_name;
    const Manifest manifest = read_manifest(path);
    if (manifest.schema != schema) {
        throw Failure(path + " has schema " + std::to_string(manifest.schema) + ", this library reads " +
                      std::to_string(schema) + "; update emqdeploy-native or export again");
    }
    if (manifest.checkpoint.empty()) {
        throw Failure(directory + " holds no checkpoint, which this library runs; export again with --target native");
    }
    const auto hash = manifest.hashes.find(manifest.checkpoint);
    if (hash == manifest.hashes.end()) throw Failure(path + " has no hash of its checkpoint; " + export_again);
    const std::string file = directory + "/" + manifest.checkpoint, inside = real(directory, export_again) + "/";
    const std::string target = real(file, export_again);
    if (target.compare(0, inside.size(), inside) != 0) {
        throw Failure(path + " names '" + manifest.checkpoint + "', which lies outside the bundle; " + export_again);
    }
    File found{file, read_regular(target, largest_file, O_NOFOLLOW, export_again)};
    if (sha256({{found.bytes.data(), found.bytes.size()}}) != hash->second) {
        throw Failure(file + " was altered: it does not match its hash in the bundle's manifest; " + export_again);
    }
    return found;
}

}  // namespace

File read_checkpoint(const std::string &path) {
    if (is_there(path + "/" + manifest_name)) return read_from_bundle(path);
    const size_t slash = path.rfind('/');
    if (path.substr(slash == std::string::npos ? 0 : slash + 1) == manifest_name) {
        return read_from_bundle(slash == std::string::npos ? "." : path.substr(0, slash));
    }
    return {path, read_regular(path, largest_file, 0, "name an existing .emq file or bundle")};
}

}  // namespace emq
