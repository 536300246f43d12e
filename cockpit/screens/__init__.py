"""The screens in the order of their keys 1–6: name -> (title, "module:Class"). A new screen is one file and one row
here."""

SCREENS = {
    "dashboard": ("Dashboard", "cockpit.screens.dashboard:DashboardScreen"),
    "data": ("Data", "cockpit.screens.data:DataScreen"),
    "profile": ("Profile", "cockpit.screens.profile:ProfileScreen"),
    "runs": ("Runs", "cockpit.screens.runs:RunsScreen"),
    "chat": ("Chat", "cockpit.screens.chat:ChatScreen"),
    "doctor": ("Doctor", "cockpit.screens.doctor:DoctorScreen"),
}
