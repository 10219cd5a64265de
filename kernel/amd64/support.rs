//! Copying and filling memory.
//!
//! FreeBSD: sys/amd64/amd64/support.S (memcpy, memmove, memset)
//! Differs from FreeBSD: moves of 64 bits throughout, no string instructions. What `compiler_builtins` would bring is made
//! of those; emulated, and for short headers also on hardware, plain moves take half their time.

use core::arch::naked_asm;

/// Copies `n` bytes from `src` to `dst`, which do not overlap, and returns `dst`.
///
/// # Safety
/// Both are valid for `n` bytes.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(dst: *mut u8, src: *const u8, n: usize) -> *mut u8 {
    naked_asm!(
        "mov rax, rdi",
        "cmp rdx, 8",
        "jb 5f",
        "sub rdx, 64",
        "jb 2f",
        "9:",
        "mov rcx, [rsi]",
        "mov r8, [rsi + 8]",
        "mov r9, [rsi + 16]",
        "mov r10, [rsi + 24]",
        "mov [rdi], rcx",
        "mov [rdi + 8], r8",
        "mov [rdi + 16], r9",
        "mov [rdi + 24], r10",
        "mov rcx, [rsi + 32]",
        "mov r8, [rsi + 40]",
        "mov r9, [rsi + 48]",
        "mov r10, [rsi + 56]",
        "mov [rdi + 32], rcx",
        "mov [rdi + 40], r8",
        "mov [rdi + 48], r9",
        "mov [rdi + 56], r10",
        "add rsi, 64",
        "add rdi, 64",
        "sub rdx, 64",
        "jae 9b",
        "2:",
        // 0 to 63 bytes are left, of 8 or more in all.
        "add rdx, 64",
        "sub rdx, 8",
        "jb 4f",
        "3:",
        "mov rcx, [rsi]",
        "mov [rdi], rcx",
        "add rsi, 8",
        "add rdi, 8",
        "sub rdx, 8",
        "jae 3b",
        "4:",
        // The last 8, some of them for the second time; `rdx` is how many are left, less 8.
        "mov rcx, [rsi + rdx]",
        "mov [rdi + rdx], rcx",
        "ret",
        "5:",
        "test dl, 4",
        "jz 6f",
        "mov ecx, [rsi]",
        "mov r8d, [rsi + rdx - 4]",
        "mov [rdi], ecx",
        "mov [rdi + rdx - 4], r8d",
        "ret",
        "6:",
        "test rdx, rdx",
        "jz 7f",
        // 1 to 3: the first, the middle one and the last.
        "movzx ecx, byte ptr [rsi]",
        "mov r9, rdx",
        "shr r9, 1",
        "movzx r8d, byte ptr [rsi + r9]",
        "movzx r10d, byte ptr [rsi + rdx - 1]",
        "mov [rdi], cl",
        "mov [rdi + r9], r8b",
        "mov [rdi + rdx - 1], r10b",
        "7:",
        "ret",
    )
}

/// Copies `n` bytes from `src` to `dst`, which may overlap, and returns `dst`.
///
/// # Safety
/// Both are valid for `n` bytes.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(dst: *mut u8, src: *const u8, n: usize) -> *mut u8 {
    naked_asm!(
        // Forwards unless `dst` begins within `src`; but not by `memcpy`, which stores the last bytes twice.
        "mov rax, rdi",
        "mov rcx, rdi",
        "sub rcx, rsi",
        "cmp rcx, rdx",
        "jb 5f",
        "sub rdx, 8",
        "jb 2f",
        "9:",
        "mov rcx, [rsi]",
        "mov [rdi], rcx",
        "add rsi, 8",
        "add rdi, 8",
        "sub rdx, 8",
        "jae 9b",
        "2:",
        "add rdx, 8",
        "jz 4f",
        "3:",
        "movzx ecx, byte ptr [rsi]",
        "mov [rdi], cl",
        "inc rsi",
        "inc rdi",
        "dec rdx",
        "jnz 3b",
        "4:",
        "ret",
        "5:",
        "sub rdx, 8",
        "jb 7f",
        "6:",
        "mov rcx, [rsi + rdx]",
        "mov [rdi + rdx], rcx",
        "sub rdx, 8",
        "jae 6b",
        "7:",
        "add rdx, 8",
        "jz 4b",
        "8:",
        "movzx ecx, byte ptr [rsi + rdx - 1]",
        "mov [rdi + rdx - 1], cl",
        "dec rdx",
        "jnz 8b",
        "ret",
    )
}

/// Sets `n` bytes at `dst` to the lowest byte of `byte`, and returns `dst`.
///
/// # Safety
/// `dst` is valid for `n` bytes.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(dst: *mut u8, byte: i32, n: usize) -> *mut u8 {
    naked_asm!(
        "mov rax, rdi",
        "movzx esi, sil",
        "mov rcx, 0x0101010101010101",
        "imul rcx, rsi",
        "cmp rdx, 8",
        "jb 5f",
        "sub rdx, 64",
        "jb 2f",
        "9:",
        "mov [rdi], rcx",
        "mov [rdi + 8], rcx",
        "mov [rdi + 16], rcx",
        "mov [rdi + 24], rcx",
        "mov [rdi + 32], rcx",
        "mov [rdi + 40], rcx",
        "mov [rdi + 48], rcx",
        "mov [rdi + 56], rcx",
        "add rdi, 64",
        "sub rdx, 64",
        "jae 9b",
        "2:",
        "add rdx, 64",
        "sub rdx, 8",
        "jb 4f",
        "3:",
        "mov [rdi], rcx",
        "add rdi, 8",
        "sub rdx, 8",
        "jae 3b",
        "4:",
        "mov [rdi + rdx], rcx",
        "ret",
        "5:",
        "test rdx, rdx",
        "jz 7f",
        "6:",
        "mov [rdi], cl",
        "inc rdi",
        "dec rdx",
        "jnz 6b",
        "7:",
        "ret",
    )
}
