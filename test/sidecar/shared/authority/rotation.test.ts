import { describe, expect, it } from 'vitest'
import { createRoot } from '../../../../sidecar/shared/authority/certificate-authority.ts'
import {
  otherRoots,
  type Roots,
  rotated,
  rotationStep,
} from '../../../../sidecar/shared/authority/rotation.ts'

const dayMs = 86_400_000
const leafMs = dayMs
const root = await createRoot('cluster.local', 90 * dayMs)
const other = await createRoot('cluster.local', 90 * dayMs)
const brief = await createRoot('cluster.local', 1_000)
const now = Date.now()

describe('the next step of a rotation', () => {
  it.each<[string, Roots, number, string]>([
    ['in the first two thirds of a root', { current: root, previous: [] }, 50, 'none'],
    ['in its last third', { current: root, previous: [] }, 61, 'add-next'],
    [
      'a new root that not everybody knows',
      { current: root, next: { root: other, sinceMs: now + 61 * dayMs }, previous: [] },
      62,
      'none',
    ],
    [
      'a new root that everybody knows',
      { current: root, next: { root: other, sinceMs: now + 61 * dayMs }, previous: [] },
      63,
      'switch',
    ],
    [
      'a root that is about to expire',
      { current: root, next: { root: other, sinceMs: now + 88 * dayMs }, previous: [] },
      88.5,
      'switch',
    ],
    ['an old root that is still valid', { current: root, previous: [other.certificate] }, 10, 'none'],
    ['an old root that has expired', { current: root, previous: [brief.certificate] }, 1, 'drop-previous'],
  ])('%s', (_name, roots, days, step) => {
    expect(rotationStep(roots, now + days * dayMs, leafMs)).toBe(step)
  })
})

it('trusts a root before it signs and after it has signed', () => {
  let roots: Roots = { current: root, previous: [] }
  roots = rotated(roots, 'add-next', now, other)
  expect(roots.current).toBe(root)
  expect(otherRoots(roots)).toEqual([other.certificate])
  roots = rotated(roots, 'switch', now)
  expect(roots.current).toBe(other)
  expect(otherRoots(roots)).toEqual([root.certificate])
  roots = rotated(roots, 'drop-previous', now + 91 * dayMs)
  expect(otherRoots(roots)).toEqual([])
})
