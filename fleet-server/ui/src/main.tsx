// Entry: the frame around the pages (navigation, who is logged in, whether the page is live) and the routes.
import { type ComponentType, render } from "preact";
import { useEffect } from "preact/hooks";
import { connected } from "./live";
import { AuditPage } from "./pages/audit";
import { DevicePage } from "./pages/device";
import { FleetPage } from "./pages/fleet";
import { LabelPage } from "./pages/label";
import { LoginPage } from "./pages/login";
import { ModelsPage } from "./pages/models";
import { RolloutPage } from "./pages/rollout";
import { RolloutsPage } from "./pages/rollouts";
import { SamplesPage } from "./pages/samples";
import { AuditIcon, FleetIcon, Logo, ModelsIcon, RolloutIcon, SamplesIcon } from "./parts/icons";
import { Empty, Failed, Head } from "./parts/page";
import { catchLinks, match, type Params, path } from "./router";
import { logout, resume, session } from "./session";

interface Route {
  pattern: string;
  page: ComponentType<Params>;
}

const route = <P extends Params>(pattern: string, page: ComponentType<P>): Route => ({
  pattern,
  page: page as unknown as ComponentType<Params>,
});

const ROUTES: Route[] = [
  route("/", FleetPage),
  route("/devices/:id", DevicePage),
  route("/samples", SamplesPage),
  route("/label", LabelPage),
  route("/models", ModelsPage),
  route("/models/:name", ModelsPage),
  route("/rollouts", RolloutsPage),
  route("/rollouts/:id", RolloutPage),
  route("/audit", AuditPage),
];

const NAVIGATION = [
  { href: "/", text: "Fleet", icon: FleetIcon, under: ["/devices"] },
  { href: "/samples", text: "Samples", icon: SamplesIcon, under: ["/samples", "/label"] },
  { href: "/models", text: "Models", icon: ModelsIcon, under: ["/models"] },
  { href: "/rollouts", text: "Rollouts", icon: RolloutIcon, under: ["/rollouts"] },
  { href: "/audit", text: "Audit", icon: AuditIcon, under: ["/audit"] },
];

const LIVE = { connecting: "Connecting", live: "Live", lost: "Reconnecting" } as const;

function Sidebar() {
  const current = session.value;
  return (
    <nav class="side" aria-label="Pages">
      <a class="brand" href="/">
        <Logo />
        <span>Andon</span>
      </a>
      <ul>
        {NAVIGATION.map(({ href, text, icon: Icon, under }) => {
          const here = path.value === href || under.some((u) => path.value === u || path.value.startsWith(`${u}/`));
          return (
            <li key={href}>
              <a href={href} {...(here ? { "aria-current": "page" as const } : {})}>
                <Icon />
                {text}
              </a>
            </li>
          );
        })}
      </ul>
      <div class="side-foot">
        <span class={`live ${connected.value}`} role="status">
          <i />
          {LIVE[connected.value]}
        </span>
        {current.state === "in" && (
          <div class="who">
            <span>
              <b>{current.me.user}</b>
              <span class="note">{current.me.role}</span>
            </span>
            <button type="button" class="plain" onClick={() => void logout()}>
              Log out
            </button>
          </div>
        )}
      </div>
    </nav>
  );
}

function NotFound() {
  return (
    <>
      <Head title="No such page" />
      <Empty title={`Nothing is at ${path.value}`}>
        Go to the <a href="/">fleet</a>.
      </Empty>
    </>
  );
}

function Page() {
  for (const { pattern, page: Component } of ROUTES) {
    const params = match(pattern, path.value);
    if (params) return <Component key={`${pattern} ${Object.values(params).join(" ")}`} {...params} />;
  }
  return <NotFound />;
}

function App() {
  useEffect(() => {
    catchLinks();
    void resume();
  }, []);
  const current = session.value;
  if (current.state === "unknown") return null;
  if (current.state === "out") return <LoginPage />;
  if (current.state === "failed") {
    return (
      <main class="alone">
        <Failed error={current.error} retry={() => void resume()} />
      </main>
    );
  }
  return (
    <div class="frame">
      <a class="skip" href="#main">
        Skip to content
      </a>
      <Sidebar />
      <main id="main" tabIndex={-1}>
        <Page />
      </main>
    </div>
  );
}

const root = document.getElementById("app");
if (root) render(<App />, root);
