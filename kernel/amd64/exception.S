/*
 * Entries of the interrupt table. Vector n's code is at idt_stubs + 16 n.
 *
 * Each makes the interrupted instruction look like a caller (its address and %rbp as a stack frame), so that a backtrace
 * goes through.
 *
 * FreeBSD: sys/amd64/amd64/exception.S, sys/amd64/amd64/apic_vector.S
 */

	.section .text.exception, "ax", @progbits
	.code64

	.macro	EXCEPTION vector, error_code
	.p2align 4
	.if \error_code == 0
	pushq	$0
	.endif
	pushq	$\vector
	jmp	alltraps
	.endm

	.globl	idt_stubs
	.p2align 4
idt_stubs:
	EXCEPTION 0, 0
	EXCEPTION 1, 0
	EXCEPTION 2, 0
	EXCEPTION 3, 0
	EXCEPTION 4, 0
	EXCEPTION 5, 0
	EXCEPTION 6, 0
	EXCEPTION 7, 0
	EXCEPTION 8, 1
	EXCEPTION 9, 0
	EXCEPTION 10, 1
	EXCEPTION 11, 1
	EXCEPTION 12, 1
	EXCEPTION 13, 1
	EXCEPTION 14, 1
	EXCEPTION 15, 0
	EXCEPTION 16, 0
	EXCEPTION 17, 1
	EXCEPTION 18, 0
	EXCEPTION 19, 0
	EXCEPTION 20, 0
	EXCEPTION 21, 1
	EXCEPTION 22, 0
	EXCEPTION 23, 0
	EXCEPTION 24, 0
	EXCEPTION 25, 0
	EXCEPTION 26, 0
	EXCEPTION 27, 0
	EXCEPTION 28, 0
	EXCEPTION 29, 1
	EXCEPTION 30, 1
	EXCEPTION 31, 0

	.set	vector, 32
	.rept	256 - 32
	.p2align 4
	pushq	$vector
	jmp	intr_common
	.set	vector, vector + 1
	.endr

/* The compiler's calling convention saves the rest. */
	.p2align 4
intr_common:
	pushq	8(%rsp)
	pushq	%rbp
	movq	%rsp, %rbp
	pushq	%rax
	pushq	%rcx
	pushq	%rdx
	pushq	%rsi
	pushq	%rdi
	pushq	%r8
	pushq	%r9
	pushq	%r10
	pushq	%r11
	subq	$8, %rsp
	movl	16(%rbp), %edi
	cld
	call	interrupt_entry
	addq	$8, %rsp
	popq	%r11
	popq	%r10
	popq	%r9
	popq	%r8
	popq	%rdi
	popq	%rsi
	popq	%rdx
	popq	%rcx
	popq	%rax
	popq	%rbp
	addq	$16, %rsp
	iretq

/* struct TrapFrame */
	.p2align 4
alltraps:
	pushq	16(%rsp)
	pushq	%rbp
	movq	%rsp, %rbp
	pushq	%rax
	pushq	%rbx
	pushq	%rcx
	pushq	%rdx
	pushq	%rsi
	pushq	%rdi
	pushq	%r8
	pushq	%r9
	pushq	%r10
	pushq	%r11
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	movq	%rsp, %rdi
	subq	$8, %rsp
	cld
	call	trap_entry
	addq	$8, %rsp
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%r11
	popq	%r10
	popq	%r9
	popq	%r8
	popq	%rdi
	popq	%rsi
	popq	%rdx
	popq	%rcx
	popq	%rbx
	popq	%rax
	popq	%rbp
	addq	$24, %rsp
	iretq

	.section .text, "ax", @progbits
