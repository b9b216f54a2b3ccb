#include "tests/emulation/shared_memory.h"

#include <elf.h>
#include <link.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "tests/emulation/cuda_on_host.h"

namespace cuda_on_host {

namespace {

constexpr size_t kCanaryBytes = 1024;

struct Variable {
    size_t offset, bytes;
};

// Names of function-local variables begin with _ZZ.
std::vector<Variable> find_variables() {
    std::ifstream file("/proc/self/exe", std::ios::binary);
    const std::string image{std::istreambuf_iterator<char>(file), {}};
    const auto* header = reinterpret_cast<const ElfW(Ehdr)*>(image.data());
    const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(image.data() + header->e_shoff);
    std::vector<Variable> found;
    for (int i = 0; i < header->e_shnum; ++i) {
        if (sections[i].sh_type != SHT_SYMTAB) continue;
        const char* names = image.data() + sections[sections[i].sh_link].sh_offset;
        const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(image.data() + sections[i].sh_offset);
        for (size_t k = 0; k < sections[i].sh_size / sizeof *symbols; ++k)
            if (ELF64_ST_TYPE(symbols[k].st_info) == STT_TLS && std::strncmp(names + symbols[k].st_name, "_ZZ", 3) == 0)
                found.push_back({symbols[k].st_value, symbols[k].st_size});
    }
    return found;
}

char* thread_locals_of_executable() {
    char* begin = nullptr;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* out) {
            *static_cast<void**>(out) = info->dlpi_tls_data;  // the executable comes first
            return 1;
        },
        &begin);
    return begin;
}

std::vector<void* (*)()>& dynamic_addresses() {
    static std::vector<void* (*)()> list;
    return list;
}

}  // namespace

bool know_dynamic_shared(void* (*address)()) {
    dynamic_addresses().push_back(address);
    return true;
}

void poison_shared_memory(size_t dynamic_bytes) {
    static const std::vector<Variable> variables = find_variables();
    char* base = thread_locals_of_executable();
    for (const Variable& v : variables) std::memset(base + v.offset, 0xff, v.bytes);
    for (auto address : dynamic_addresses()) std::memset(address(), 0xff, std::min(kMaxDynamicShared, dynamic_bytes + kCanaryBytes));
}

bool dynamic_shared_overrun(size_t dynamic_bytes) {
    for (auto address : dynamic_addresses()) {
        const char* begin = static_cast<const char*>(address());
        if (std::any_of(begin + dynamic_bytes, begin + std::min(kMaxDynamicShared, dynamic_bytes + kCanaryBytes),
                        [](char c) { return c != '\xff'; }))
            return true;
    }
    return false;
}

}  // namespace cuda_on_host
