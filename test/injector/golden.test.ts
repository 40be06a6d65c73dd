import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { parse, parseAllDocuments, stringify } from 'yaml'
import { inject } from '../../injector/inject.ts'
import { injectText, uninjectText } from '../../injector/offline.ts'
import { decide } from '../../injector/policy.ts'
import { cases, goldenMesh, type PodCase } from './pods.ts'

const folder = join(import.meta.dirname, 'golden')

function resultOf({ pod, namespaceLabels }: PodCase): object {
  const decision = decide({ pod, namespace: 'shop', namespaceLabels }, goldenMesh)
  const { warnings } = decision
  if (!decision.inject) return { injected: false, reason: decision.reason, warnings }
  return { injected: true, warnings, pod: inject(pod, goldenMesh, decision.workload) }
}

describe('golden pods', () => {
  it('are many, each with a name of its own', () => {
    expect(cases.length).toBeGreaterThanOrEqual(60)
    expect(new Set(cases.map((c) => c.name)).size).toBe(cases.length)
  })

  it.each(cases)('$name', (one) => {
    const file = join(folder, `${one.name}.json`)
    const text = `${JSON.stringify(resultOf(one), null, 2)}\n`
    if (process.env.UPDATE_GOLDEN === '1') {
      mkdirSync(folder, { recursive: true })
      writeFileSync(file, text)
    }
    expect(JSON.parse(text)).toEqual(JSON.parse(readFileSync(file, 'utf8')))
  })

  /** Offline whoever names a file has asked for injection, so only pods of meshed namespaces can be compared. */
  const asked = cases.filter((c) => c.namespaceLabels['edgemesh-injection'] === 'enabled')
  it.each(asked)('$name is the same by the CLI, and taken out again byte for byte', (one) => {
    const golden = JSON.parse(readFileSync(join(folder, `${one.name}.json`), 'utf8')) as {
      injected: boolean
      pod?: object
    }
    for (const text of [`# ${one.name}\n${stringify(one.pod)}`, `${JSON.stringify(one.pod, null, 4)}\n`]) {
      const done = injectText(text, 'pod.yaml', goldenMesh)
      expect(done.outcomes).toHaveLength(1)
      if (!golden.injected) {
        expect(done.text).toBe(text)
        continue
      }
      expect(parse(done.text)).toEqual(golden.pod)
      expect(injectText(done.text, 'pod.yaml', goldenMesh).text).toBe(done.text)
      expect(uninjectText(done.text, 'pod.yaml').text).toBe(text)
    }
  })
})

describe('files of workloads', () => {
  const container = '      containers:\n        - {name: app, image: "x"}   # flow, quoted\n'
  const workload = (kind: string) =>
    `# about the ${kind}\napiVersion: apps/v1\nkind: ${kind}   # kind\nmetadata: {name: ${kind.toLowerCase()}}\nspec:\n  template:\n    metadata:\n      labels: {a: b}\n    spec:\n${container}`
  const cron =
    'apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: nightly}\nspec:\n  schedule: "0 3 * * *"\n  jobTemplate:\n    spec:\n      template:\n        spec:\n          restartPolicy: Never\n          containers:\n          - name: app\n            image: x\n'
  const list =
    'apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata:\n    name: a\n  spec:\n    initContainers:\n    - name: i\n      image: x\n    containers:\n    - name: c\n      image: x\n    volumes:\n    - name: v\n      emptyDir: {}\n- apiVersion: v1\n  kind: ConfigMap\n  metadata: {name: m}\n'
  const stream = ['Deployment', 'StatefulSet', 'DaemonSet', 'ReplicaSet', 'Job']
    .map(workload)
    .concat(cron, list)
    .join('---\n')

  it('are injected in every kind, all else byte for byte', () => {
    const { text, outcomes } = injectText(stream, 'all.yaml', goldenMesh)
    expect(outcomes.map((o) => o.kind)).toEqual([
      'Deployment',
      'StatefulSet',
      'DaemonSet',
      'ReplicaSet',
      'Job',
      'CronJob',
      'Pod',
    ])
    expect(outcomes.every((o) => typeof o.decision === 'object' && o.decision.inject)).toBe(true)
    const documents = parseAllDocuments(text)
    expect(Array.isArray(documents) && documents.every((d) => d.errors.length === 0)).toBe(true)
    for (const line of stream.split('\n')) expect(text).toContain(line)
    expect(text.match(/name: edgemesh-sidecar/g)).toHaveLength(7)
    expect(uninjectText(text, 'all.yaml').text).toBe(stream)
  })

  it('without workloads stay as they are', () => {
    const text = '# a comment\nkind: ConfigMap\ndata: {a: "1"}\n---\n'
    expect(injectText(text, 'a.yaml', goldenMesh)).toEqual({ text, outcomes: [] })
    expect(uninjectText(text, 'a.yaml')).toEqual({ text, outcomes: [] })
  })

  it('that are broken are named with the line', () => {
    expect(() => injectText('kind: Pod\nspec: {a: [}\n', 'broken.yaml', goldenMesh)).toThrow(
      /broken.yaml, line 2/,
    )
  })
})
