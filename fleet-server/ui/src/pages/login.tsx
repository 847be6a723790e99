// Login by name and password. Afterwards the page that was asked for is shown.
import { useState } from "preact/hooks";
import { useAct } from "../parts/dialog";
import { Logo } from "../parts/icons";
import { Failed } from "../parts/page";
import { login } from "../session";

export function LoginPage() {
  const [user, setUser] = useState("");
  const [password, setPassword] = useState("");
  const { busy, error, run } = useAct(() => login(user.trim(), password));
  document.title = "Log in · Andon";
  return (
    <main class="login">
      <form
        onSubmit={(e) => {
          e.preventDefault();
          run();
        }}
      >
        <div class="login-brand">
          <Logo />
          <div>
            <h1>Andon</h1>
            <p class="note">Visual inspection that notices when it goes wrong.</p>
          </div>
        </div>
        <label>
          User
          <input name="user" autocomplete="username" autofocus required value={user} onInput={(e) => setUser(e.currentTarget.value)} />
        </label>
        <label>
          Password
          <input
            name="password"
            type="password"
            autocomplete="current-password"
            required
            value={password}
            onInput={(e) => setPassword(e.currentTarget.value)}
          />
        </label>
        {error && <Failed error={error} />}
        <button type="submit" class="primary" disabled={busy || !user || !password}>
          Log in
        </button>
        <p class="note">The server prints the first account and its password once, at its first start.</p>
      </form>
    </main>
  );
}
