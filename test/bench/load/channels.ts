// Many control channels in one process, each a sidecar's own: says how many are up, and when a change has reached all.
import { answer, nextCommand } from './lines.ts'
import { type MeshOptions, type MeshPod, openMeshClient } from './mesh-client.ts'

interface Open {
  server: MeshOptions['server']
  trustBundleFile: string
  pods: MeshPod[]
  subscriptions: string[]
}

const open = await nextCommand<Open>()
if (open === undefined) process.exit(0)
const { pods, ...options } = open
const channels: { readonly up: boolean }[] = []
/** Number of channels whose last word of the endpoints was that of now. */
let told = 0
let lastToldAt = 0
const onMessage = ({ type }: { type: string }) => {
  if (type !== 'endpoints') return
  told++
  lastToldAt = Date.now()
}
for (const pod of pods) {
  channels.push((await openMeshClient(pod, { ...options, onMessage })).channel)
  if (channels.length % 10 === 0) await new Promise((resolve) => setTimeout(resolve, 20))
}
for (;;) {
  const command = await nextCommand<'count' | 'forget'>()
  if (command === undefined) break
  if (command === 'forget') told = 0
  answer({ up: channels.filter((c) => c.up).length, told, lastToldAt })
}
process.exit(0)
