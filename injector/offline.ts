import {
  type Document,
  isMap,
  isPair,
  isScalar,
  isSeq,
  LineCounter,
  type Pair,
  parseAllDocuments,
  stringify,
  type YAMLMap,
} from 'yaml'
import { EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import { inject, uninject } from './inject.ts'
import type { MeshSettings } from './mesh-settings.ts'
import type { Pod } from './pod.ts'
import { type Decision, decide } from './policy.ts'

/** What became of one workload of a file. */
export interface Outcome {
  kind: string
  name: string
  decision: Decision | 'uninjected' | 'not-injected'
}

export interface Transformed {
  text: string
  outcomes: Outcome[]
}

/** Where the pod template stands in each kind of workload. */
const templates: Record<string, readonly string[]> = {
  Pod: [],
  Deployment: ['spec', 'template'],
  StatefulSet: ['spec', 'template'],
  DaemonSet: ['spec', 'template'],
  ReplicaSet: ['spec', 'template'],
  ReplicationController: ['spec', 'template'],
  Job: ['spec', 'template'],
  CronJob: ['spec', 'jobTemplate', 'spec', 'template'],
}
const begin = '# edgemesh: begin'
const end = '# edgemesh: end'
const block = /^[ ]*# edgemesh: begin\n[\s\S]*?^[ ]*# edgemesh: end\n/gm

interface Edit {
  offset: number
  text: string
}

interface Workload {
  kind: string
  name: string
  namespace: string
  /** Of the pod: the object itself, or its template. */
  node: YAMLMap
  pod: Pod
}

/**
 * Injects every workload of a file, which may hold several documents. Text is only ever inserted, between two marking comments, so whatever
 * else stands in the file stays byte for byte. Workloads count as asked for unless they say "false".
 */
export function injectText(text: string, file: string, mesh: MeshSettings): Transformed {
  return transform(text, file, ({ kind, name, namespace, node, pod }) => {
    const asked = { 'edgemesh-injection': 'enabled' }
    const decision = decide({ pod, namespace, namespaceLabels: asked }, mesh)
    const outcome = { kind, name, decision }
    if (!decision.inject) return { outcome, edits: [] }
    const after = inject(pod, mesh, decision.workload)
    return { outcome, edits: editsOf(text, node, pod, after), after }
  })
}

/** Takes injection out again: exactly what `injectText` put in, or what the webhook did to objects that were read back. */
export function uninjectText(text: string, file: string): Transformed {
  const marked = text.includes(begin)
  const plain = text.replaceAll(block, '')
  const done = transform(plain, file, ({ kind, name, pod }) => {
    const after = uninject(pod)
    return {
      outcome: { kind, name, decision: after === pod ? 'not-injected' : 'uninjected' },
      edits: [],
      after,
    }
  })
  if (!marked) return done
  const outcomes = done.outcomes.map((o): Outcome => ({ ...o, decision: 'uninjected' }))
  return { text: plain, outcomes }
}

type Each = (workload: Workload) => { outcome: Outcome; edits: Edit[]; after?: Pod }

function transform(text: string, file: string, each: Each): Transformed {
  const documents = parse(text, file)
  const outcomes: Outcome[] = []
  const edits: Edit[] = []
  let rewritten = false
  for (const document of documents) {
    for (const workload of workloadsOf(document.contents)) {
      const result = each(workload)
      outcomes.push(result.outcome)
      edits.push(...result.edits)
      if (result.edits.length > 0 || result.after === undefined || result.after === workload.pod) continue
      rewrite(document, workload.node, result.after) // flow style, or an object that the API server gave
      rewritten = true
    }
  }
  if (rewritten) return { text: render(text, documents), outcomes }
  const ordered = edits.sort((a, b) => b.offset - a.offset)
  return { text: ordered.reduce((t, e) => t.slice(0, e.offset) + e.text + t.slice(e.offset), text), outcomes }
}

function parse(text: string, file: string): Document.Parsed[] {
  const lineCounter = new LineCounter()
  const documents = parseAllDocuments(text, { lineCounter })
  if (!Array.isArray(documents)) return []
  for (const document of documents) {
    const [error] = document.errors
    if (error === undefined) continue
    const { line, col } = lineCounter.linePos(error.pos[0])
    const why = error.message.split(/ at line \d+/)[0]
    throw new EdgeMeshError('bad-manifest', `Cannot read ${file}, line ${line}, column ${col}: ${why}.`)
  }
  return documents
}

function workloadsOf(contents: unknown): Workload[] {
  if (!isMap(contents)) return []
  const kind = String(contents.get('kind') ?? '')
  const items = contents.get('items')
  if (kind.endsWith('List') && isSeq(items)) return items.items.flatMap(workloadsOf)
  const path = Object.hasOwn(templates, kind) ? templates[kind] : undefined
  const node = path === undefined ? undefined : path.length === 0 ? contents : contents.getIn(path)
  if (!isMap(node) || !isMap(node.get('spec')) || !isSeq(node.getIn(['spec', 'containers']))) return []
  const object = contents.toJSON() as { metadata?: { name?: string; namespace?: string } }
  const raw = (path ?? []).reduce((o: unknown, key) => (o as Record<string, unknown>)[key], object) as Pod
  const pod: Pod = raw.metadata === undefined ? { ...raw, metadata: {} } : raw
  const { name = '', namespace = 'default' } = object.metadata ?? {}
  return [{ kind, name, namespace, node: node as YAMLMap, pod }]
}

/** What to insert; nothing where the style does not allow it (flow style, JSON). */
function editsOf(text: string, node: YAMLMap, before: Pod, after: Pod): Edit[] {
  const [metadata, spec] = [pairOf(node, 'metadata'), pairOf(node, 'spec')]
  if (node.flow || spec === undefined || !isBlockMap(spec.value)) return []
  const added = Object.fromEntries(
    Object.entries(after.metadata.annotations ?? {}).filter(
      ([k]) => before.metadata.annotations?.[k] === undefined,
    ),
  )
  const edits =
    metadata === undefined
      ? [insertBefore(text, spec, { metadata: { annotations: added } })]
      : [mapEdit(text, metadata.value, 'annotations', added)]
  for (const field of ['initContainers', 'containers', 'volumes'] as const) {
    const known = (before.spec[field] ?? []) as { name: string }[]
    const fresh = ((after.spec[field] ?? []) as { name: string }[]).filter(
      (c) => !known.some((k) => k.name === c.name),
    )
    if (fresh.length > 0) edits.push(seqEdit(text, spec.value, field, fresh))
  }
  return edits.every((e) => e !== undefined) ? edits : []
}

function mapEdit(text: string, parent: unknown, key: string, added: object): Edit | undefined {
  if (!isBlockMap(parent)) return undefined
  const pair = pairOf(parent, key)
  if (pair === undefined || (isScalar(pair.value) && pair.value.value === null)) {
    return pair === undefined ? insertBefore(text, parent.items[0], { [key]: added }) : undefined
  }
  return isBlockMap(pair.value) ? insertBefore(text, pair.value.items[0], added) : undefined
}

function seqEdit(text: string, parent: unknown, key: string, added: readonly object[]): Edit | undefined {
  if (!isBlockMap(parent)) return undefined
  const pair = pairOf(parent, key)
  if (pair === undefined) return insertBefore(text, parent.items[0], { [key]: added })
  const { value } = pair
  if (!isSeq(value) || value.flow || value.items.length === 0) return undefined
  // The range of a block sequence begins at its first dash.
  return insertAt(text, value.range?.[0], added)
}

const insertBefore = (text: string, pair: unknown, added: object): Edit | undefined =>
  isPair(pair) && isScalar(pair.key) ? insertAt(text, pair.key.range?.[0], added) : undefined

/** Before the line on which something begins, as deep as that is; nothing where more stands before it on the line. */
function insertAt(text: string, offset: number | undefined, added: object): Edit | undefined {
  if (offset === undefined) return undefined
  const start = text.lastIndexOf('\n', offset - 1) + 1
  const indent = text.slice(start, offset)
  if (indent.trim() !== '') return undefined
  const yaml = stringify(added, { lineWidth: 0 }).trimEnd()
  const lines = [begin, ...yaml.split('\n'), end].map((line) => (line === '' ? '' : indent + line))
  return { offset: start, text: `${lines.join('\n')}\n` }
}

function isBlockMap(node: unknown): node is YAMLMap {
  return isMap(node) && !node.flow && node.items.length > 0
}

function pairOf(map: YAMLMap, key: string): Pair | undefined {
  return map.items.find((p) => isScalar(p.key) && p.key.value === key)
}

function rewrite(document: Document.Parsed, node: YAMLMap, after: Pod): void {
  for (const field of ['metadata', 'spec'] as const) node.set(field, document.createNode(after[field]))
  if (Object.keys(after.metadata).length === 0) node.delete('metadata')
}

function render(text: string, documents: Document.Parsed[]): string {
  if (text.trimStart().startsWith('{')) {
    try {
      JSON.parse(text)
      const indent = /\n( +)"/.exec(text)?.[1]?.length ?? 0
      return `${JSON.stringify(documents[0]?.toJSON(), null, indent)}${text.endsWith('\n') ? '\n' : ''}`
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw new Error(sentenceOf(error))
    }
  }
  return documents
    .map((d) => d.toString({ lineWidth: 0 }))
    .join(documents.length > 1 && !text.startsWith('---') ? '---\n' : '')
}
