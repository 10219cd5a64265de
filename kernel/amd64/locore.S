/*
 * From the PVH entry (32-bit, paging off) to hammer_time() in the higher half.
 *
 * FreeBSD: sys/amd64/amd64/locore.S, sys/x86/xen/xen-locore.S (xen_start32), sys/amd64/amd64/mpboot.S
 */

	.set	KERNBASE, 0xffffffff80000000
	.set	CR0_ON, 0x8001002b		/* PG WP NE TS MP PE: any FPU instruction traps */
	.set	CR4_ON, 0x000000a0		/* PGE PAE */
	.set	EFER, 0xc0000080
	.set	EFER_ON, 0x00000900		/* NXE LME */

/*
 * XEN_ELFNOTE_PHYS32_ENTRY. QEMU reads eight bytes of descriptor at a place it computes with the segment's
 * alignment, hence the alignment of 4 and the zero high half.
 */
	.section .note.Xen, "a", @note
	.p2align 2
	.long	4, 8, 18
	.asciz	"Xen"
	.long	pvh_start - KERNBASE, 0

	.section .text.locore, "ax", @progbits
	.code32
	.globl	pvh_start
pvh_start:
	cli
	cld
	movl	%ebx, %esi			/* struct hvm_start_info, kept for hammer_time() */

	/* Long mode must exist: otherwise there is nobody to tell, so stop. */
	movl	$0x80000000, %eax
	cpuid
	cmpl	$0x80000001, %eax
	jb	.Lno_long_mode
	movl	$0x80000001, %eax
	cpuid
	btl	$29, %edx
	jnc	.Lno_long_mode

	/* The first GiB, seen at 0 and at KERNBASE, in pages of 2 MiB. */
	movl	$(boot_pd - KERNBASE), %edi
	movl	$0x83, %eax			/* PS RW P */
	movl	$512, %ecx
1:	movl	%eax, (%edi)
	addl	$0x200000, %eax
	addl	$8, %edi
	decl	%ecx
	jnz	1b
	movl	$(boot_pd - KERNBASE + 3), %eax
	movl	%eax, boot_pdpt_low - KERNBASE
	movl	%eax, boot_pdpt_high - KERNBASE + 510 * 8
	movl	$(boot_pdpt_low - KERNBASE + 3), boot_pml4 - KERNBASE
	movl	$(boot_pdpt_high - KERNBASE + 3), boot_pml4 - KERNBASE + 511 * 8

	movl	$CR4_ON, %eax
	movl	%eax, %cr4
	movl	$(boot_pml4 - KERNBASE), %eax
	movl	%eax, %cr3
	movl	$EFER, %ecx
	movl	$EFER_ON, %eax
	xorl	%edx, %edx
	wrmsr
	movl	$CR0_ON, %eax
	movl	%eax, %cr0
	lgdtl	boot_gdt_low - KERNBASE
	ljmp	$0x08, $(.Llong_mode - KERNBASE)

.Lno_long_mode:
	hlt
	jmp	.Lno_long_mode

	.code64
.Llong_mode:
	movabsq	$.Lhigh, %rax
	jmp	*%rax
.Lhigh:	lgdt	boot_gdt_high(%rip)
	xorl	%eax, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	%eax, %fs
	movl	%eax, %gs
	leaq	boot_stack_top(%rip), %rsp
	xorl	%ebp, %ebp			/* where a backtrace ends */
	movl	%esi, %edi
	call	hammer_time
	ud2

/*
 * What an application processor runs first: copied to a page below 1 MiB. It comes in real mode with
 * CS = page >> 4, goes to long mode on the boot tables (which show low memory at its own address), and leaves
 * for the higher half with the page tables, the stack and the number in the fields at the end.
 */
	.section .rodata.mpboot, "a", @progbits
	.globl	mptramp_start, mptramp_end, mptramp_stack, mptramp_cpu, mptramp_pml4, mptramp_base, mptramp_far
	.p2align 4
	.code16
mptramp_start:
	cli
	cld
	movw	%cs, %ax
	movw	%ax, %ds
	movzwl	%ax, %ebx
	shll	$4, %ebx			/* linear address of this page */
	lgdtl	mptramp_gdt_desc - mptramp_start
	movl	$CR4_ON, %eax
	movl	%eax, %cr4
	movl	$(boot_pml4 - KERNBASE), %eax
	movl	%eax, %cr3
	movl	$EFER, %ecx
	movl	$EFER_ON, %eax
	xorl	%edx, %edx
	wrmsr
	movl	$CR0_ON, %eax
	movl	%eax, %cr0
	ljmpl	*(mptramp_far - mptramp_start)
	.code64
mptramp_long:
	xorl	%eax, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	%eax, %fs
	movl	%eax, %gs
	movq	(mptramp_stack - mptramp_start)(%rbx), %rsp
	movl	(mptramp_cpu - mptramp_start)(%rbx), %edi
	movq	(mptramp_pml4 - mptramp_start)(%rbx), %rcx
	movabsq	$.Lmp_high, %rax
	jmp	*%rax
	.p2align 3
mptramp_gdt:
	.quad	0
	.quad	0x00209b0000000000		/* 0x08: 64-bit code */
mptramp_gdt_desc:
	.word	. - mptramp_gdt - 1
mptramp_base:
	.long	mptramp_gdt - mptramp_start	/* linear once the page's address is added */
	.p2align 2
mptramp_far:
	.long	mptramp_long - mptramp_start	/* same */
	.word	0x08
	.p2align 3
mptramp_stack:
	.quad	0
mptramp_pml4:
	.quad	0
mptramp_cpu:
	.long	0
mptramp_end:
	.section .text.locore, "ax", @progbits
	.code64
.Lmp_high:
	movq	%rcx, %cr3			/* the stack is only on the kernel's tables */
	lgdt	boot_gdt_high(%rip)
	xorl	%ebp, %ebp
	call	init_secondary
	ud2

	.section .rodata.locore, "a", @progbits
	.p2align 3
boot_gdt:
	.quad	0
	.quad	0x00209b0000000000		/* 0x08: 64-bit code */
boot_gdt_end:
boot_gdt_low:
	.word	boot_gdt_end - boot_gdt - 1
	.long	boot_gdt - KERNBASE
boot_gdt_high:
	.word	boot_gdt_end - boot_gdt - 1
	.quad	boot_gdt

	.section .bss.locore, "aw", @nobits
	.p2align 12
	.globl	boot_pml4
boot_pml4:
	.skip	4096
boot_pdpt_low:
	.skip	4096
boot_pdpt_high:
	.skip	4096
boot_pd:
	.skip	4096
	.globl	boot_stack_guard, boot_stack_top
boot_stack_guard:			/* unmapped by pmap_bootstrap() */
	.skip	4096
	.skip	262144			/* a stack instance is built here, before it moves to the heap */
boot_stack_top:
	.section .text, "ax", @progbits
