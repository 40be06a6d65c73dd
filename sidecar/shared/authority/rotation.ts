import { X509Certificate } from 'node:crypto'
import type { Root } from './certificate-authority.ts'

/**
 * The roots in all their ages. A new root is trusted before it signs, and an old one is trusted until it expires,
 * so that at no moment two ends of a session know no root in common.
 */
export interface Roots {
  current: Root
  /** Trusted already; signs once everybody has had the time to learn it. */
  next?: { root: Root; sinceMs: number }
  /** PEM; they sign no more. */
  previous: string[]
}

export type RotationStep = 'none' | 'add-next' | 'switch' | 'drop-previous'

/**
 * What is to be done now. Sidecars learn the trust bundle with each certificate, so after two leaf lifetimes each that has
 * been connected at all knows the next root.
 */
export function rotationStep(roots: Roots, nowMs: number, leafLifetimeMs: number): RotationStep {
  const { notBeforeMs, notAfterMs } = validity(roots.current.certificate)
  const lastThirdMs = notAfterMs - (notAfterMs - notBeforeMs) / 3
  if (roots.next !== undefined) {
    const known = nowMs - roots.next.sinceMs >= 2 * leafLifetimeMs
    const pressing = notAfterMs - nowMs <= 2 * leafLifetimeMs
    if (known || pressing) return 'switch'
  } else if (nowMs >= lastThirdMs) return 'add-next'
  return roots.previous.some((pem) => validity(pem).notAfterMs <= nowMs) ? 'drop-previous' : 'none'
}

/** The roots after the step; `made` is the new root where one is added. */
export function rotated(roots: Roots, step: RotationStep, nowMs: number, made?: Root): Roots {
  const previous = roots.previous.filter((pem) => validity(pem).notAfterMs > nowMs)
  if (step === 'add-next' && made !== undefined)
    return { ...roots, previous, next: { root: made, sinceMs: nowMs } }
  if (step === 'switch' && roots.next !== undefined)
    return { current: roots.next.root, previous: [roots.current.certificate, ...previous] }
  return { ...roots, previous }
}

/** Trusted beside the current root, PEM. */
export function otherRoots({ next, previous }: Roots): string[] {
  return [...(next === undefined ? [] : [next.root.certificate]), ...previous]
}

function validity(pem: string): { notBeforeMs: number; notAfterMs: number } {
  const { validFrom, validTo } = new X509Certificate(pem)
  return { notBeforeMs: Date.parse(validFrom), notAfterMs: Date.parse(validTo) }
}
