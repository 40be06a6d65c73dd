import { EdgeMeshError } from '#shared/errors.ts'
import { type BackendName, backendNames, chooseBackend, Iptables } from './backend.ts'
import {
  type Capture,
  differences,
  type Family,
  renderCleanup,
  renderInstall,
  type Table,
  tablesFor,
} from './rules.ts'

const families: readonly Family[] = [4, 6]

/** The back end for this network namespace; IPv4 decides for both families. */
export async function findBackend(wanted: BackendName | 'auto'): Promise<BackendName> {
  const [nft, legacy] = await Promise.all([new Iptables('nft', 4).probe(), new Iptables('legacy', 4).probe()])
  return chooseBackend({ nft, legacy }, wanted)
}

/** Writes the rules of every family that has something to capture, and verifies what the kernel then shows. */
export async function install(captures: readonly Capture[], backend: BackendName): Promise<void> {
  for (const capture of captures) {
    const iptables = new Iptables(backend, capture.family)
    if (tablesFor(capture).length === 0) continue
    const tables = await restoreBest(iptables, capture)
    const wrong = differences(tables, await iptables.save())
    if (wrong.length > 0) {
      throw new EdgeMeshError('rules-failed', `Cannot trust the EDGE-MESH rules: ${wrong.join('; ')}.`)
    }
  }
}

/** Kernels without the match `recent` get the rules without it; then an ignored service stays so in this pod. */
async function restoreBest(iptables: Iptables, capture: Capture): Promise<Table[]> {
  const plain = tablesFor(capture)
  if (capture.ignoredAddresses.length > 0) {
    const tables = tablesFor({ ...capture, reclaimable: true })
    const restored = await iptables.restore(renderInstall(tables, await iptables.save())).then(
      () => true,
      () => false, // the plain rules tell what else may be wrong
    )
    if (restored) return tables
  }
  await iptables.restore(renderInstall(plain, await iptables.save()))
  return plain
}

/** The restore input that `install` would apply on a fresh namespace, by family. */
export function preview(captures: readonly Capture[]): { family: Family; input: string }[] {
  return captures
    .map((capture) => ({
      family: capture.family,
      input: renderInstall(tablesFor({ ...capture, reclaimable: true }), ''),
    }))
    .filter(({ input }) => input !== '')
}

/** Removes everything of ours from every back end that works; says from where. */
export async function cleanup(): Promise<string[]> {
  const removed: string[] = []
  for (const backend of backendNames) {
    for (const family of families) {
      const iptables = new Iptables(backend, family)
      const probe = await iptables.probe()
      const input = 'saved' in probe ? renderCleanup(probe.saved) : ''
      if (input === '') continue
      await iptables.restore(input)
      removed.push(`${backend} IPv${family}`)
    }
  }
  return removed
}
